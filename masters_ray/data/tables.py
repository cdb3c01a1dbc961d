"""Tables: the files and data sets whose rows a source has. A table yields its rows in their order, all or chosen ones,
and holds few of them at a time."""

import codecs
import csv
import io
import itertools
import json
import re
import sys
import tarfile
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any, ClassVar, TypeAlias, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from masters_ray.data.texts import BadRowError, cut, shown
from masters_ray.errors import DataError

T = TypeVar("T")
Row: TypeAlias = dict[str, Any] | BadRowError  # key → value of a row, or why the row cannot be read
Chosen: TypeAlias = np.ndarray | None  # ascending indices of rows from 0; None: all
AT_A_TIME = 64  # rows that are held at a time: each may hold pictures
_WIDER = (
    (pa.float32(), pa.string(), pa.float64()),
    (pa.list_(pa.float32()), pa.list_(pa.string()), pa.list_(pa.float64())),
)
"""Types between which a column is cast in turn for the shortest decimals: 0.1, not 0.10000000149011612."""
DAMAGED = "Is it damaged, or cut short? Copy or write it again."
csv.field_size_limit(sys.maxsize)  # for base64 pictures


class Table(ABC):
    """Every method raises DataError, with the name, when the table cannot be read."""

    errors: ClassVar[tuple[type[Exception], ...]] = ()
    """What reading may raise beside the errors of files, text and Arrow."""
    remedy = DAMAGED  # what mends a table that cannot be read

    def __init__(self, name: str, folder: Path | None) -> None:
        """folder: of relative picture paths; None: they have none."""
        self.name, self.folder = name, folder

    @abstractmethod
    def stamp(self) -> list[Any]:
        """Returns what tells whether the table has changed."""

    @abstractmethod
    def units(self) -> Iterator[tuple[int, Any]]:
        """Yields (number as a person counts, what ``row`` makes the row of) of every row."""

    def row(self, unit: Any) -> Row:
        return unit

    def count(self) -> int:
        with reading(self.name, *self.errors, remedy=self.remedy):
            return sum(1 for _ in self.units())

    def rows(self, chosen: Chosen = None) -> Iterator[tuple[str, Row]]:
        """Yields ("name:number", row)."""
        with reading(self.name, *self.errors, remedy=self.remedy):
            for number, unit in _picked(self.units(), chosen):
                yield f"{self.name}:{number}", self.row(unit)

    def column(self, key: str) -> Iterator[Row]:
        """Yields every row with at least its value at a dotted ``key``; rows without it may be empty."""
        return (row for _, row in self.rows())


class FileTable(Table):
    """A file on a disk or in an object store."""

    def __init__(self, name: str, folder: Path | None, filesystem: Any, path: str) -> None:
        super().__init__(name, folder)
        self._filesystem, self._path = filesystem, path

    def stamp(self) -> list[Any]:
        found = self._filesystem.get_file_info(self._path)
        return [self.name, found.size, found.mtime_ns]


class TextTable(FileTable):
    """A text file, perhaps compressed."""

    def _open(self) -> Any:
        """Opens the file's decompressed bytes."""
        if isinstance(self._filesystem, fs.LocalFileSystem) and not self._path.endswith((".gz", ".zst", ".bz2")):
            return Path(self._path).open("rb", buffering=1 << 20)
        return io.BufferedReader(self._filesystem.open_input_stream(self._path, compression="detect"), 1 << 20)


class JsonLines(TextTable):
    """An object a line; a line that cannot be read costs its row alone."""

    def units(self) -> Iterator[tuple[int, bytes]]:
        with self._open() as lines:
            for number, line in enumerate(lines, 1):
                if line.removeprefix(codecs.BOM_UTF8).strip():
                    yield number, line

    def row(self, unit: bytes) -> Row:
        try:
            return _row(_DECODER.decode(unit.decode("utf-8-sig").strip()))
        except BadRowError as error:
            return error
        except (ValueError, ArithmeticError, RecursionError) as error:  # also too many digits or too deep nesting
            return BadRowError(f"not JSON in UTF-8 that can be read: {cut(str(error))}")

    def column(self, key: str) -> Iterator[Row]:
        name = json.dumps(key.rpartition(".")[2], ensure_ascii=False).encode()
        with reading(self.name):
            for _, line in self.units():
                yield self.row(line) if name in line else {}


class JsonValues(TextTable):
    """A JSON array of objects, or objects one after the other over several lines; decoded one by one."""

    def units(self) -> Iterator[tuple[int, Row]]:
        with self._open() as stream:
            yield from enumerate(self._values(io.TextIOWrapper(stream, "utf-8-sig")), 1)

    def _values(self, stream: Any) -> Iterator[Row]:
        text, place, opened, size = "", 0, False, 1 << 20
        while True:
            while text[place : place + 1] in (" ", "\t", "\r", "\n", ",") or (
                not opened and text[place : place + 1] == "["
            ):
                opened = opened or text[place] == "["
                place += 1
            if text[place : place + 1] == "]":
                return
            try:
                value, place = _value(text, place)
            except (ValueError, RecursionError) as error:
                more = stream.read(size)
                if not more and not text[place:].strip():
                    return
                if not more:
                    raise DataError(f"{self.name}: JSON that cannot be read: {cut(str(error))}") from error
                text, place, size = text[place:] + more, 0, 2 * size
                continue
            size = 1 << 20
            yield value


class Separated(TextTable):
    """A file of comma- or tab-separated values with a header; all values are texts, empty ones null."""

    def __init__(self, *arguments: Any, delimiter: str) -> None:
        super().__init__(*arguments)
        self._delimiter = delimiter

    def units(self) -> Iterator[tuple[int, Row]]:
        with self._open() as stream:
            rows = csv.reader(io.TextIOWrapper(stream, "utf-8-sig", newline=""), delimiter=self._delimiter, strict=True)
            header = next(rows, [])
            if len(set(header)) < len(header) or (len(header) == 1 and re.search("[;,\t]", header[0])):
                expected = f"a header of different names with {self._delimiter!r} between"
                raise DataError(f"{self.name}: expected {expected}, found {shown(header)}. Mend or convert the file.")
            for number, values in enumerate(filter(None, rows), 1):
                row: Row = dict(zip(header, (value or None for value in values), strict=False))
                wrong = BadRowError(f"{len(values)} values, expected {len(header)} as in the header")
                yield number, row if len(values) == len(header) else wrong


class Archive(TextTable):
    """A tar file in webdataset's layout, perhaps compressed: members that follow each other under one name are a row,
    whose keys are their endings. json is decoded, txt, cls and caption are texts, all else is encoded bytes."""

    errors = (tarfile.TarError, EOFError)

    def units(self) -> Iterator[tuple[int, Row]]:
        with self._open() as stream, tarfile.open(fileobj=stream, mode="r|") as archive:
            members = (self._content(archive, member) for member in archive if member.isfile())
            for number, (_, sample) in enumerate(itertools.groupby(members, key=lambda one: one[0]), 1):
                yield number, _sample(sample)

    def _content(self, archive: tarfile.TarFile, member: tarfile.TarInfo) -> tuple[str, str, bytes]:
        """Returns a member's name without its ending, the ending, and its bytes."""
        folder, _, file = member.name.rpartition("/")
        name, _, ending = file.partition(".")
        opened = archive.extractfile(member)
        return f"{folder}/{name}", ending.lower(), opened.read() if opened else b""


class Parquet(FileTable):
    """A parquet file; row groups without chosen rows are not read."""

    def units(self) -> Iterator[tuple[int, Row]]:
        yield from enumerate((row for _, row in self.rows()), 1)

    def count(self) -> int:
        with self._content() as content:
            return int(content.metadata.num_rows)

    def rows(self, chosen: Chosen = None) -> Iterator[tuple[str, Row]]:
        with self._content() as content:
            first = 0
            for group in range(content.metadata.num_row_groups):
                count = content.metadata.row_group(group).num_rows
                own = None if chosen is None else chosen[(chosen >= first) & (chosen < first + count)] - first
                if own is None or len(own):
                    batches = content.iter_batches(batch_size=AT_A_TIME, row_groups=[group])
                    for index, row in _rows_of(batches, own):
                        yield f"{self.name}:{first + index + 1}", row
                first += count

    def column(self, key: str) -> Iterator[Row]:
        name = key.partition(".")[0]
        with self._content() as content:
            if name not in content.schema_arrow.names:
                yield from itertools.repeat({}, content.metadata.num_rows)
                return
            for batch in content.iter_batches(batch_size=1024, columns=[name]):
                yield from plain(batch)

    @contextmanager
    def _content(self) -> Iterator[Any]:
        with (
            reading(self.name),
            self._filesystem.open_input_file(self._path) as file,
            pq.ParquetFile(file, buffer_size=1 << 20) as content,
        ):
            names = content.schema_arrow.names
            if len(set(names)) < len(names):
                raise DataError(f"{self.name}: two columns have the same name, of {cut(', '.join(names))}. Rename one.")
            yield content


@contextmanager
def reading(name: str, *others: type[Exception], remedy: str = DAMAGED) -> Iterator[None]:
    try:
        yield
    except DataError:
        raise
    except (OSError, pa.ArrowException, csv.Error, UnicodeDecodeError, *others) as error:
        if isinstance(error, UnicodeDecodeError):
            remedy = "Write it in UTF-8: iconv -f LATIN1 -t UTF-8."
        reason = cut(" ".join(str(error).split()), 300)
        raise DataError(f"{name}: cannot be read ({reason}). {remedy}") from error


def _picked(units: Iterator[T], chosen: Chosen) -> Iterator[T]:
    if chosen is None:
        yield from units
        return
    for skipped in np.diff(chosen, prepend=-1) - 1:
        yield from itertools.islice(units, skipped, skipped + 1)


def _rows_of(batches: Iterable[pa.RecordBatch], chosen: Chosen) -> Iterator[tuple[int, Row]]:
    """Yields (index, row) of the chosen rows of consecutive batches; reads none after the last of them."""
    first = 0
    for batch in batches:
        if chosen is not None and first > chosen[-1]:
            return
        own = np.arange(len(batch))
        if chosen is not None:
            own = chosen[(chosen >= first) & (chosen < first + len(batch))] - first
        if len(own):
            part = batch if len(own) == len(batch) else batch.take(pa.array(own))
            yield from zip((own + first).tolist(), plain(part), strict=True)
        first += len(batch)


def plain(batch: pa.RecordBatch | pa.Table) -> list[Row]:
    """Returns the rows of a batch, floats of 32 bits with their shortest decimals."""
    for (index, name), (narrow, text, wide) in itertools.product(enumerate(batch.schema.names), _WIDER):
        if batch.column(index).type == narrow:
            batch = batch.set_column(index, name, batch.column(index).cast(text).cast(wide))
    try:
        return batch.to_pylist(maps_as_pydicts="strict")
    except (ValueError, OverflowError, KeyError) as error:  # not UTF-8, a date after the year 9999, a key twice
        if len(batch) == 1:
            return [BadRowError(f"a value cannot be read: {cut(str(error))}")]
        return [row for index in range(len(batch)) for row in plain(batch.slice(index, 1))]


def _sample(members: Iterable[tuple[str, str, bytes]]) -> Row:
    row: dict[str, Any] = {}
    for name, ending, content in members:
        try:
            if ending.endswith("json"):
                row[ending] = _DECODER.decode(content.decode("utf-8-sig").strip())
            else:
                row[ending] = (
                    content.decode() if ending in ("txt", "cls", "caption") else {"bytes": content, "path": name}
                )
        except BadRowError as error:
            return error
        except (ValueError, ArithmeticError, RecursionError) as error:
            return BadRowError(f"{name}.{ending}: not {ending} in UTF-8 that can be read: {cut(str(error))}")
    return row


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise BadRowError(f"one of the keys {shown([key for key, _ in pairs])} stands there twice: keep one")
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_each_key_once, parse_float=Decimal)
"""Decimals keep trailing zeros, as in 12.40."""


def _row(value: Any) -> Row:
    return value if isinstance(value, dict) else BadRowError(f"expected an object, found {type(value).__name__}")


def _value(text: str, place: int) -> tuple[Row, int]:
    """Returns the value that begins at ``place`` as a row, and its end. Raises ValueError when it does not end."""
    try:
        value, end = _DECODER.raw_decode(text, place)
    except BadRowError as error:
        return error, json.JSONDecoder().raw_decode(text, place)[1]
    return _row(value), end
