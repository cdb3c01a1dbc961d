"""Rows of stores by what was asked, so that what was made once need not be made again."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from masters_ray.errors import DamagedError
from masters_ray.progress import say
from masters_ray.store.account import read_accounts
from masters_ray.store.folder import Folder, Where
from masters_ray.store.rows import SCHEMA, table_in

_SHARDS_HELD = 8


@dataclass(frozen=True)
class _Place:
    folder: Folder
    shard: str
    position: int


class Lookup:
    """Questions' digests → their rows in some stores, finished or not; used by several threads at once."""

    def __init__(self, folders: Iterable[Where]) -> None:
        """Reads the accounts only. What a damaged shard holds is not found; the person who waits is told."""
        self._places = {
            digest: _Place(folder, name, position)
            for folder in map(Folder, folders)
            for name, account in read_accounts(folder, on_damage=_told).items()
            for position, digest in account.asked.items()
            if position not in account.rejected
        }
        self._held: OrderedDict[tuple[str, str], pa.Table] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Questions that have a row."""
        return len(self._places)

    def rows(self, digests: Sequence[str]) -> dict[str, pa.Table]:
        """The rows of those of the questions that have one, a table of one row each."""
        found = {}
        for digest in digests:
            if (place := self._places.get(digest)) is not None and (row := self._row(place)) is not None:
                found[digest] = row
        return found

    def _row(self, place: _Place) -> pa.Table | None:
        try:
            shard = self._shard(place)
            index = pc.index(shard["position"], place.position).as_py()
            if index < 0:
                raise DamagedError(f"{place.folder / place.shard}: no row at position {place.position}")
        except DamagedError as error:
            _told(error)
            lost = place.folder, place.shard
            self._places = {key: one for key, one in self._places.items() if (one.folder, one.shard) != lost}
            return None
        return shard.slice(index, 1)

    def _shard(self, place: _Place) -> pa.Table:
        key = str(place.folder), place.shard
        with self._lock:
            if key not in self._held:
                content = place.folder.read(place.shard)
                self._held[key] = table_in(content, place.folder / place.shard).select(SCHEMA.names)
                if len(self._held) > _SHARDS_HELD:
                    self._held.popitem(last=False)
            self._held.move_to_end(key)
            return self._held[key]


def _told(error: DamagedError) -> None:
    say(f"{error}; its rows are not taken over")


def moved(row: pa.Table, position: int, stage: int) -> pa.Table:
    """A row at another place."""
    for name, value in (("position", position), ("stage", stage)):
        index = SCHEMA.get_field_index(name)
        row = row.set_column(index, SCHEMA.field(name), pa.array([value], SCHEMA.field(name).type))
    return row.replace_schema_metadata(None)
