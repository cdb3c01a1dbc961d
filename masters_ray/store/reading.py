"""Rows of stores: of finished ones in their order, and of any by what was asked."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from masters_ray.errors import DamagedError, StoreError
from masters_ray.progress import say
from masters_ray.records import JudgedText, RolloutGroup
from masters_ray.store.folder import Folder, Where
from masters_ray.store.rows import SCHEMA, groups
from masters_ray.store.shards import MANIFEST, SHARD, read_accounts, read_manifest, read_rows

if TYPE_CHECKING:
    import ray.data

_SHARDS_HELD = 8


def shard_names(folder: Where) -> list[str]:
    """The shards of a finished store that have rows, in the order of these. Raises StoreError when it is not
    finished."""
    opened = Folder(folder)
    manifest = read_manifest(opened)
    if manifest is None:
        raise StoreError(f"{folder}: no {MANIFEST}, so no finished store. Run the stage that makes it again.")
    if gone := sorted({shard["name"] for shard in manifest.shards} - set(opened.names(SHARD))):
        raise DamagedError(f"{opened / gone[0]}: in the manifest, but gone")
    return [shard["name"] for shard in manifest.shards if shard["rows"]]


def open_dataset(folders: Iterable[Where]) -> ray.data.Dataset:
    """Finished stores, all on one file system, as one Ray Dataset: rows of SCHEMA, store after store, in the order of
    their positions."""
    import ray.data

    # The newer reader starts eight actors to look at the files' footers, which costs a small machine a quarter of a
    # minute; the manifest has named the files already.
    ray.data.DataContext.get_current().use_datasource_v2 = False
    opened = [Folder(folder) for folder in folders]
    files = [folder.path(name) for folder in opened for name in shard_names(folder)]
    if not files:
        return ray.data.from_arrow(SCHEMA.empty_table())
    filesystem = None if opened[0].on_disk else opened[0].filesystem
    # Neither a question mark nor "a=b" in a directory's name means anything.
    options = {"file_extensions": None, "partitioning": None}
    return ray.data.read_parquet(files, schema=SCHEMA, filesystem=filesystem, **options)


def read(folder: Where) -> Iterable[RolloutGroup]:
    """The groups of a finished store, without Ray."""
    for name in shard_names(folder):
        yield from groups(read_shard(folder, name))


def read_shard(folder: Where, name: str) -> pa.Table:
    """The rows of one shard. Raises DamagedError when one is not as it was written."""
    opened = Folder(folder)
    rows = read_rows(pa.BufferReader(opened.read(name)), opened / name)
    return rows.select(SCHEMA.names).replace_schema_metadata(None)


def read_judged(folder: Where) -> Iterator[JudgedText]:
    """The answers of a finished store as their judge saw them."""
    for row in read(folder):
        asked = {name: getattr(row.problem, name) for name in ("kind", "question", "label", "choices")}
        for one in (answer.judged for answer in row.answers):
            assert one.accuracy is not None  # no other is stored
            yield JudgedText(
                **asked,
                position=row.position,
                source=one.answer.source,
                text=one.answer.text,
                accuracy=one.accuracy,
                verdict=one.verdict,
                reasoning=one.reasoning,
            )


class Lookup:
    """Questions' digests → their rows in some stores, finished or not, so that what was made once need not be made
    again; used by several threads at once."""

    def __init__(self, folders: Iterable[Where]) -> None:
        """Reads the accounts only. What a damaged shard holds is not found; the person who waits is told."""
        self._places = {
            digest: (folder, name, position)
            for folder in map(Folder, folders)
            for name, account in read_accounts(folder, on_damage=_told).items()
            for position, digest in account.asked.items()
            if position not in account.rejected
        }
        self._held = lru_cache(_SHARDS_HELD)(read_shard)
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Questions that have a row."""
        return len(self._places)

    def rows(self, digests: Sequence[str]) -> dict[str, pa.Table]:
        """The rows of those of the questions that have one, a table of one row each."""
        found = {}
        for digest in digests:
            if digest in self._places:
                folder, name, position = self._places[digest]
                try:
                    with self._lock:
                        shard = self._held(folder, name)
                    if (index := pc.index(shard["position"], position).as_py()) < 0:
                        raise DamagedError(f"{folder / name}: no row at position {position}")
                    found[digest] = shard.slice(index, 1)
                except DamagedError as error:
                    _told(error)
                    self._places = {key: one for key, one in self._places.items() if one[:2] != (folder, name)}
        return found


def _told(error: DamagedError) -> None:
    say(f"{error}; its rows are not taken over")
