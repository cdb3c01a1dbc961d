"""The store of one stage: shards of rows, what made them, and in the end a manifest.

``key.json``                what the rows are made of; rows of another key are never added
``shard-00000032.parquet``  the questions from position 32 on that went through the engines together: rows, and in the
                            file's metadata an account of every question that was asked
``manifest.json``           the shards in the order of their rows, and the digest of the key; without it the store is
                            not finished

A shard carries the digest of its key too. What is not as it was written costs itself: a writer that goes on sets it
aside, and its questions are asked again.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from masters_ray.errors import DamagedError, StoreError
from masters_ray.progress import say
from masters_ray.records import JudgedText, RolloutGroup
from masters_ray.store.account import SHARD, Account, with_account
from masters_ray.store.folder import Folder, Where
from masters_ray.store.manifest import FORMAT, KEY, MANIFEST, Manifest, as_key, digest_of, read_json_of, read_manifest
from masters_ray.store.rows import JUDGED, PARQUET, SCHEMA, groups, judged_texts, table_in
from masters_ray.store.survey import set_aside, survey

if TYPE_CHECKING:
    import ray.data


_RETIRED = "retired-"
"""How the names of directories begin whose shards' questions have other places now, or are not asked any more."""


class Writer:
    """Fills a store's directory shard by shard, in any order; goes on where an earlier one of the same key stopped."""

    def __init__(self, folder: Where, key: Mapping[str, Any]) -> None:
        """Shards that are not as they were written are set aside. Raises StoreError when the store is finished, or when
        it was begun with another key."""
        self._folder = Folder(folder)
        if self._folder.has(MANIFEST):
            raise StoreError(
                f"{folder}: holds a finished store already; it is never written over. Choose another run.dir."
            )
        self._folder.clear()
        self._key = digest_of(as_key(key))
        self._claim(as_key(key))
        self._lock = threading.Lock()
        self._rows: dict[str, int] = {}
        self._digests: dict[str, str] = {}
        self._taken = bytearray()
        found = survey(self._folder)
        set_aside(self._folder, found.broken)
        for name, account in found.accounts.items():
            self._add(name, account, found.digests[name])

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
        pq.write_table(with_account(rows, account, self._key), content, **PARQUET)
        written = content.getvalue()
        self._folder.write(account.name, written)
        self._add(account.name, account, hashlib.sha256(written).hexdigest())

    def discard(self, shards: Mapping[str, Account]) -> None:
        """Take out these shards: their questions may be stored anew. Raises StoreError when one cannot be deleted."""
        for name, account in shards.items():
            self._folder.remove(name)
            self._forget(name, account)

    def retire(self, shards: Mapping[str, Account]) -> None:
        """Take out these shards, but keep their rows where ``retired`` finds them until the store is finished. Raises
        StoreError when one cannot be moved."""
        into = self._folder / f"{_RETIRED}{len(retired(self._folder))}"
        for name, account in shards.items():
            self._folder.move(name, into)
            self._forget(name, account)

    def finish(self, made_by: Mapping[str, Any]) -> Manifest:
        """Write the manifest: from now on the directory is a store. Raises StoreError when it cannot be written."""
        shards = [
            {"name": name, "rows": rows, "sha256": self._digests[name]} for name, rows in sorted(self._rows.items())
        ]
        rows = sum(self._rows.values())
        noted: dict[str, Any] = json.loads(json.dumps(dict(made_by)))
        content = {"format": FORMAT, "rows": rows, "shards": shards, "made_by": noted, "key": self._key}
        self._folder.write(MANIFEST, json.dumps(content | {"digest": digest_of(content)}, indent=1).encode())
        for folder in retired(self._folder):
            self._folder.remove_folder(folder)
        return Manifest(rows=rows, shards=shards, made_by=noted, key=self._key)

    def _forget(self, name: str, account: Account) -> None:
        with self._lock:
            for position in account.asked:
                self._taken[position] = 0
            del self._rows[name]
            del self._digests[name]

    def _claim(self, wanted: dict[str, Any]) -> None:
        shards = self._folder.names(SHARD)
        found: dict[str, Any] = {}
        try:
            found = read_json_of(self._folder, KEY) if self._folder.has(KEY) else {}
        except DamagedError as error:
            say(str(error))
        if found == wanted:
            return
        if shards and found.get("format", FORMAT) == FORMAT and _made_by(self._folder, shards, self._key):
            say(f"{self._folder / KEY}: not what the shards were made by; it is written again")
        elif found:
            different = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
            told = "; ".join(f"{name}: {found.get(name)!r} there, {wanted.get(name)!r} now" for name in different)
            raise StoreError(
                f"{self._folder}: its rows were made by something else, and are not mixed with others ({told}). "
                "Choose another run.dir, set it back, or delete the directory."
            )
        elif shards:
            raise StoreError(
                f"{self._folder}: shards of another recipe, or of another version, without {KEY}. Delete the directory "
                "to make them again."
            )
        self._folder.write(KEY, json.dumps(wanted, indent=1).encode())

    def _add(self, name: str, account: Account, digest: str) -> None:
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
            self._digests[name] = digest


def _made_by(folder: Folder, shards: Iterable[str], key: str) -> bool:
    """Whether a shard carries the digest of this key, and none that can be read carries another."""
    told = []
    for name in shards:
        try:
            with folder.open(name) as file:
                told.append((pq.read_metadata(file).metadata or {}).get(b"key", b"").decode())
        except (pa.ArrowException, OSError):
            continue
    return set(told) == {key}


def shard_names(folder: Where) -> list[str]:
    """The shards of a finished store that have rows, in the order of these. Raises StoreError when it is not
    finished."""
    manifest = read_manifest(folder)
    if manifest is None:
        raise StoreError(f"{folder}: no {MANIFEST}, so no finished store. Run the stage that makes it again.")
    if gone := sorted({shard["name"] for shard in manifest.shards} - set(Folder(folder).names(SHARD))):
        raise DamagedError(f"{Folder(folder) / gone[0]}: in the manifest, but gone")
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
    opened = Folder(folder)
    for name in shard_names(opened):
        yield from groups(table_in(opened.read(name), opened / name))


def read_shard(folder: Where, name: str) -> pa.Table:
    """The rows of one shard. Raises StoreError when it is damaged."""
    opened = Folder(folder)
    return table_in(opened.read(name), opened / name).select(SCHEMA.names).replace_schema_metadata(None)


def read_judged(folder: Where) -> Iterator[JudgedText]:
    """The answers of a store, finished or not, the latest shard first; scores are not read. A damaged shard is said and
    passed over."""
    opened = Folder(folder)
    for name in reversed(opened.names(SHARD)):
        try:
            with opened.open(name) as file:
                rows = table_in(file, opened / name, JUDGED)
        except DamagedError as error:
            say(f"{error}: its verdicts are asked again")
            continue
        yield from judged_texts(rows)


def retired(folder: Where) -> list[str]:
    """Directories of a store with shards that a writer took out of it and whose rows may be needed."""
    return [name for name in Folder(folder).folders() if name.startswith(_RETIRED)]
