"""The store of one stage: shards of rows, what made them, and in the end a manifest.

``key.json``                what the rows are made of; rows of another key are never added
``shard-00000032.parquet``  the questions from position 32 on that went through the engines together: rows, and in the
                            file's metadata an account of every question that was asked
``manifest.json``           the shards in the order of their rows; without it the store is not finished
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from masters_ray.errors import StoreError
from masters_ray.records import JudgedText, RolloutGroup
from masters_ray.store.account import SHARD, Account, read_accounts, with_account
from masters_ray.store.folder import Folder, Where
from masters_ray.store.rows import JUDGED, PARQUET, SCHEMA, groups, judged_texts, table_in

if TYPE_CHECKING:
    import ray.data

MANIFEST = "manifest.json"
KEY = "key.json"
_FORMAT = 7


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a finished store says of itself."""

    rows: int
    shards: list[dict[str, Any]]
    """name, rows and sha256 of each, in the order of their rows"""
    made_by: dict[str, Any]
    """Whatever the writer noted: ratio, sparsity, digests, seconds, counts."""


class Writer:
    """Fills a store's directory shard by shard, in any order; goes on where an earlier one of the same key stopped."""

    def __init__(self, folder: Where, key: Mapping[str, Any]) -> None:
        """Raises StoreError when the store is finished, when it was begun with another key, when a shard is damaged, or
        when two shards hold the same question."""
        self._folder = Folder(folder)
        if self._folder.has(MANIFEST):
            raise StoreError(
                f"{folder}: holds a finished store already; it is never written over. Choose another run.dir."
            )
        self._folder.clear()
        self._claim(key)
        self._lock = threading.Lock()
        self._rows: dict[str, int] = {}
        self._digests: dict[str, str] = {}
        self._taken = bytearray()
        for name, account in read_accounts(self._folder).items():
            self._add(name, account)

    def write(self, rows: pa.Table, account: Account) -> None:
        """Add a shard; may be called from several threads. Raises StoreError when a row was not asked for, when a
        question has neither a row nor a reason, or when the file cannot be written."""
        stored = rows["position"].to_pylist()
        if sorted([*stored, *account.rejected]) != sorted(account.asked):
            raise StoreError(
                f"{self._folder}: asked {sorted(account.asked)}, stored {stored}, set aside "
                f"{sorted(account.rejected)}: each question needs a row or a reason"
            )
        content = pa.BufferOutputStream()
        pq.write_table(with_account(rows, account), content, **PARQUET)
        written = content.getvalue()
        self._folder.write(account.name, written)
        self._add(account.name, account, hashlib.sha256(written).hexdigest())

    def discard(self, shards: Mapping[str, Account]) -> None:
        """Take out these shards: their questions may be stored anew. Raises StoreError when one cannot be deleted."""
        for name, account in shards.items():
            self._folder.remove(name)
            with self._lock:
                for position in account.asked:
                    self._taken[position] = 0
                del self._rows[name]
                self._digests.pop(name, None)

    def finish(self, made_by: Mapping[str, Any]) -> Manifest:
        """Write the manifest: from now on the directory is a store. Raises StoreError when a shard of an earlier writer
        is damaged."""
        shards = [
            {"name": name, "rows": rows, "sha256": self._digests.get(name) or self._checked(name)}
            for name, rows in sorted(self._rows.items())
        ]
        manifest = Manifest(rows=sum(self._rows.values()), shards=shards, made_by=dict(made_by))
        content = {"format": _FORMAT, "rows": manifest.rows, "shards": shards, "made_by": manifest.made_by}
        self._folder.write(MANIFEST, json.dumps(content, indent=1).encode())
        return manifest

    def _claim(self, key: Mapping[str, Any]) -> None:
        wanted = as_key(key)
        if not self._folder.has(KEY):
            if self._folder.names(SHARD):
                raise StoreError(f"{self._folder}: shards without {KEY}. Delete the directory to make them again.")
            self._folder.write(KEY, json.dumps(wanted, indent=1).encode())
            return
        found = _read_json(self._folder, KEY)
        if different := sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name)):
            told = "; ".join(f"{name}: {found.get(name)!r} there, {wanted.get(name)!r} now" for name in different)
            raise StoreError(
                f"{self._folder}: its rows were made by something else, and are not mixed with others ({told}). "
                "Choose another run.dir, set it back, or delete the directory."
            )

    def _add(self, name: str, account: Account, digest: str = "") -> None:
        with self._lock:
            missing = max(account.asked) + 1 - len(self._taken)
            self._taken.extend(bytes(max(0, missing)))
            for position in account.asked:
                if self._taken[position]:
                    raise StoreError(
                        f"{self._folder}: {name} holds questions that another shard holds too, position {position} "
                        "first. Did two runs write here? Delete one of the shards."
                    )
            for position in account.asked:
                self._taken[position] = 1
            self._rows[name] = account.rows
            if digest:
                self._digests[name] = digest

    def _checked(self, name: str) -> str:
        content = self._folder.read(name)
        table_in(content, self._folder / name)
        return hashlib.sha256(content).hexdigest()


def as_key(key: Mapping[str, Any]) -> dict[str, Any]:
    """A writer's key as ``read_key`` gives it."""
    found: dict[str, Any] = json.loads(json.dumps({"format": _FORMAT, **key}))
    return found


def read_manifest(folder: Where) -> Manifest | None:
    """The manifest of a finished store, or None. Raises StoreError when it is damaged or a shard is gone."""
    opened = Folder(folder)
    if not opened.has(MANIFEST):
        return None
    content = _read_json(opened, MANIFEST)
    try:
        version = content["format"]
        manifest = Manifest(rows=content["rows"], shards=content["shards"], made_by=content["made_by"])
    except (KeyError, TypeError) as error:
        raise StoreError(
            f"{opened / MANIFEST}: expected a manifest, found {error!r}. Delete {folder} to make its rows again."
        ) from error
    if version != _FORMAT:
        raise StoreError(
            f"{opened / MANIFEST}: expected format {_FORMAT}, found {version}. Delete {folder} to make its rows again."
        )
    if gone := sorted({shard["name"] for shard in manifest.shards} - set(opened.names(SHARD))):
        raise StoreError(f"{folder}: {gone[0]} is in the manifest but gone. Delete {folder} to make it again.")
    return manifest


def check_digests(folder: Where) -> None:
    """Read every shard of a finished store. Raises StoreError when one has other bytes than the manifest says."""
    opened, manifest = Folder(folder), read_manifest(folder)
    for shard in manifest.shards if manifest else []:
        if hashlib.sha256(opened.read(shard["name"])).hexdigest() != shard["sha256"]:
            raise StoreError(
                f"{opened / shard['name']}: other bytes than the manifest says. Delete {folder} to make its rows again."
            )


def read_key(folder: Where) -> dict[str, Any]:
    """What the rows of a store are made of. Raises StoreError when the directory holds no store."""
    opened = Folder(folder)
    if not opened.has(KEY):
        raise StoreError(f"{folder}: no {KEY}, so no store. A run's stores are in its rollouts/stage-N.")
    key: dict[str, Any] = _read_json(opened, KEY)
    return key


def shard_names(folder: Where) -> list[str]:
    """The shards of a finished store that have rows, in the order of these. Raises StoreError when it is not
    finished."""
    manifest = read_manifest(folder)
    if manifest is None:
        raise StoreError(f"{folder}: no {MANIFEST}, so no finished store. Run the stage that makes it again.")
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
    return ray.data.read_parquet(files, schema=SCHEMA, filesystem=filesystem)


def read(folder: Where) -> Iterable[RolloutGroup]:
    """The groups of a finished store, without Ray."""
    opened = Folder(folder)
    for name in shard_names(opened):
        yield from groups(table_in(opened.read(name), opened / name))


def read_shard(folder: Where, name: str) -> pa.Table:
    """The rows of one shard. Raises StoreError when it is damaged."""
    opened = Folder(folder)
    return table_in(opened.read(name), opened / name).select(SCHEMA.names).replace_schema_metadata(None)


def read_judged(folder: Where) -> Iterator[JudgedText]:
    """The answers of a store, finished or not, the latest shard first; scores are not read. Raises StoreError when a
    shard is damaged."""
    opened = Folder(folder)
    for name in reversed(opened.names(SHARD)):
        with opened.open(name) as file:
            yield from judged_texts(table_in(file, opened / name, JUDGED))


def _read_json(folder: Folder, name: str) -> Any:
    try:
        return json.loads(folder.read(name))
    except ValueError as error:
        raise StoreError(f"{folder / name}: not JSON ({error}). Delete {folder} to make its rows again.") from error
