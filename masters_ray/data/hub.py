"""Tables that the library ``datasets`` reads."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from masters_ray.data.tables import AT_A_TIME, DAMAGED, Chosen, Row, Table, plain, reading
from masters_ray.errors import DataError
from masters_ray.progress import warn

_UNREACHED = "Mend id, subset or split, reach the Hub, or call hf auth login if the data set is gated."


class HubTable(Table):
    """What the library ``datasets`` reads: a data set on the Hub, one that it saved, Arrow files. Streamed where it is
    not on this disk as Arrow; pictures stay encoded."""

    errors = (Exception,)  # the library and its clients raise errors of any kind

    def __init__(self, name: str, folder: Path | None, call: str, *arguments: Any, **options: Any) -> None:
        """call: ``load_dataset`` or ``load_from_disk``; arguments, options: of the call."""
        super().__init__(name, folder)
        self._call, self._arguments, self._options = call, arguments, options
        self._opened: Any = None
        self.remedy = DAMAGED if Path(arguments[0]).exists() or "data_files" in options else _UNREACHED

    def stamp(self) -> list[Any]:
        """Sizes and times of files on this disk; of a data set on the Hub only its name."""
        place = Path(self._options.get("data_files", self._arguments[0]))
        files = sorted(one for one in [place, *place.rglob("*")] if one.is_file())
        return [self.name, [[str(one), one.stat().st_size, one.stat().st_mtime_ns] for one in files]]

    def units(self) -> Iterator[tuple[int, Row]]:
        data = self._data().with_format("arrow")
        yield from enumerate((row for batch in data.iter(AT_A_TIME) for row in plain(batch)), 1)

    def count(self) -> int:
        data = self._data()
        if hasattr(data, "__len__"):
            return len(data)
        known = (data.info.splits or {}).get(str(data.split))
        return known.num_examples if known and known.num_examples else super().count()

    def rows(self, chosen: Chosen = None) -> Iterator[tuple[str, Row]]:
        data = self._data()
        if chosen is None or not hasattr(data, "select"):
            yield from super().rows(chosen)
            return
        with reading(self.name, *self.errors):
            batches = data.select(chosen).with_format("arrow").iter(AT_A_TIME)
            rows = (row for batch in batches for row in plain(batch))
            for index, row in zip(chosen, rows, strict=True):
                yield f"{self.name}:{index + 1}", row

    def column(self, key: str) -> Iterator[Row]:
        data, name = self._data(), key.partition(".")[0]
        if data.column_names is not None and name not in data.column_names:
            yield from itertools.repeat({}, self.count())
            return
        with reading(self.name, *self.errors, remedy=self.remedy):
            for batch in data.select_columns([name]).with_format("arrow").iter(1024):
                yield from plain(batch)

    def _data(self) -> Any:
        if self._opened is None:
            import datasets

            datasets.disable_progress_bars()
            with reading(self.name, *self.errors, remedy=self.remedy):
                self._opened = getattr(datasets, self._call)(*self._arguments, **self._options)
            if isinstance(self._opened, dict):
                raise DataError(f"{self.name}: expected a split: set split to one of {', '.join(self._opened)}")
            if self._opened.info.builder_name in ("csv", "json"):
                told = "datasets guesses the types of its values (007 is read as 7)"
                warn(f"{self.name}: {told}; to keep them as they are written, download its files and name these")
        return self._opened
