"""Reads rows: of finished stores in the order of their positions, and of any store by a question's digest."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow.dataset import ParquetFragmentScanOptions

from masters_ray.errors import DamagedError, StoreError
from masters_ray.progress import warn
from masters_ray.records import JudgedText, RolloutGroup, Source
from masters_ray.store.folder import Folder, Where, undamaged
from masters_ray.store.rows import SCHEMA, groups
from masters_ray.store.shards import MANIFEST, SHARD, read_accounts, read_manifest, read_rows

if TYPE_CHECKING:
    import ray.data


def shard_names(folder: Where) -> list[str]:
    """Returns the shards of a finished store that have rows, in the rows' order. Raises StoreError when the store is
    not finished, DamagedError when a shard is gone."""
    opened = Folder(folder)
    manifest = read_manifest(opened)
    if manifest is None:
        raise StoreError(f"{folder}: no {MANIFEST}, so no finished store. Run the stage that makes it again.")
    if gone := {shard["name"] for shard in manifest.shards} - set(opened.names(SHARD)):
        raise DamagedError(f"{opened / min(gone)}: in the manifest, but gone")
    return [shard["name"] for shard in manifest.shards if shard["rows"]]


def open_dataset(folders: Iterable[Where]) -> "ray.data.Dataset":
    """Opens finished stores on the same file system as a Ray Dataset: rows of SCHEMA, store after store, in the order
    of their positions. Reading raises OSError at a page that has changed since it was written."""
    import ray.data

    # The newer reader starts eight actors to read the files' footers, which takes a small machine about 15 s; the
    # manifest has already named the files.
    ray.data.DataContext.get_current().use_datasource_v2 = False
    opened = [Folder(folder) for folder in folders]
    files = [folder.path(name) for folder in opened for name in shard_names(folder)]
    if not files:
        return ray.data.from_arrow(SCHEMA.empty_table())
    # Ray verifies no checksums by default; the buffers are its own defaults.
    checked = ParquetFragmentScanOptions(use_buffered_stream=True, buffer_size=8 << 20, page_checksum_verification=True)
    # A question mark or "a=b" in a directory's name has no special meaning.
    options: dict[str, Any] = {"file_extensions": None, "partitioning": None, "fragment_scan_options": checked}
    return ray.data.read_parquet(files, schema=SCHEMA, filesystem=opened[0].filesystem, **options)


def read(folder: Where) -> Iterable[RolloutGroup]:
    """Yields the groups of a finished store, without Ray."""
    for name in shard_names(folder):
        yield from groups(read_shard(folder, name))


def read_shard(folder: Where, name: str) -> pa.Table:
    """Returns the rows of a shard. Raises DamagedError when the file has changed since it was written."""
    opened = Folder(folder)
    rows = read_rows(pa.BufferReader(opened.read(name)), opened / name)
    return rows.select(SCHEMA.names).replace_schema_metadata(None)


def read_judged(folder: Where) -> Iterator[JudgedText]:
    """Yields the answers of a finished store as their judge saw them."""
    for row in read(folder):
        asked = {name: getattr(row.problem, name) for name in ("id", "kind", "question", "label", "choices")}
        for judged in (one.judged for one in row.answers):
            said = {name: getattr(judged, name) for name in ("accuracy", "verdict", "reasoning")}
            answer = judged.answer
            yield JudgedText(**asked, **said, position=row.position, source=answer.source, text=answer.text)


def right_by_dataset(folder: Where) -> Counter[tuple[str, Source, int]]:
    """Returns (data source, writer, R_acc) → number of answers in a store's rows, finished or not."""
    opened, found = Folder(folder), Counter[tuple[str, Source, int]]()
    for name in opened.names(SHARD):
        with undamaged(opened / name):
            columns = ["dataset", *(f"answers.list.element.{one}" for one in ("source", "accuracy"))]
            table = pq.ParquetFile(opened.open(name)).read(columns=columns)
        answers = table["answers"].combine_chunks()
        of = table["dataset"].combine_chunks().take(pc.list_parent_indices(answers)).to_pylist()
        said = (answers.flatten().field(one).to_pylist() for one in ("source", "accuracy"))
        found.update(zip(of, *said, strict=True))
    return found


class Lookup:
    """Finds questions' rows by digest in several stores, finished or not; thread-safe. Rows of a damaged shard are not
    found."""

    def __init__(self, folders: Iterable[Where]) -> None:
        self._places = {
            digest: (folder, name, position)
            for folder in map(Folder, folders)
            for name, account in read_accounts(folder).items()
            for position, digest in account.asked.items()
            if position not in account.rejected
        }
        self._held = lru_cache(8)(read_shard)

    def __len__(self) -> int:
        return len(self._places)

    def rows(self, digests: Sequence[str]) -> dict[str, pa.Table]:
        """Returns digest → table of a single row, for the questions that have a row."""
        found = {}
        for digest in digests:
            if digest not in self._places:
                continue
            folder, name, position = self._places[digest]
            try:
                shard = self._held(folder, name)
            except DamagedError as error:
                warn(str(error))
                self._places = {key: one for key, one in self._places.items() if one[:2] != (folder, name)}
            else:
                found[digest] = shard.filter(pc.equal(shard["position"], position))
        return found
