"""The files of a store, one by one: what they say of themselves, and which of them are as they were written.

``key.json``                what the rows are made of; rows of another key are never added
``shard-00000032.parquet``  the questions from position 32 on that went through the engines together: rows, and in the
                            file's metadata the digest of the key and an account of every question that was asked
``manifest.json``           the shards in the order of their rows, and the digest of the key; without it the store is
                            not finished

What is not as it was written costs itself: a writer that goes on sets it aside, and its questions are asked again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from masters_ray.errors import DamagedError, StoreError
from masters_ray.progress import say
from masters_ray.records import Rejected
from masters_ray.store.folder import DAMAGED, Folder, Where, undamaged

MANIFEST = "manifest.json"
KEY = "key.json"
SHARD = "shard-"
"""How the names of shards begin."""
FORMAT = 7
_ENDING = ".parquet"
_READ_AT_ONCE = 32
"""Of an object store, where a look takes as long as a message."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a finished store says of itself."""

    rows: int
    shards: list[dict[str, Any]]
    """name, rows and sha256 of each, in the order of their rows"""
    made_by: dict[str, Any]
    """Whatever the writer noted: ratio, sparsity, digests, seconds, counts."""
    key: str
    """Digest of the store's key."""

    @property
    def digest(self) -> str:
        """Of all rows, and of what made them."""
        return digest_of([self.key, [shard["sha256"] for shard in self.shards]])


@dataclass(frozen=True, kw_only=True)
class Account:
    """What became of the questions of one shard."""

    asked: dict[int, str]
    """Position → digest of each question."""
    rejected: dict[int, Rejected]
    """Questions that were set aside, by position; all others have a row."""
    noted: dict[str, Any]
    """Whatever else the writer notes: counts, seconds."""

    @property
    def rows(self) -> int:
        return len(self.asked) - len(self.rejected)

    @property
    def name(self) -> str:
        """Of its shard: shards in the order of their names hold rows in the order of their positions."""
        return f"{SHARD}{min(self.asked):08d}{_ENDING}"


def is_shard(name: str) -> bool:
    """Whether a file of a store is one, by its name."""
    return name.startswith(SHARD)


def first_position(name: str) -> int:
    """The first position of a shard, by its name."""
    return int(name.removeprefix(SHARD).removesuffix(_ENDING))


def digest_of(content: Any) -> str:
    """SHA-256 of plain values."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def as_key(key: Mapping[str, Any]) -> dict[str, Any]:
    """A writer's key as ``read_key`` gives it."""
    found: dict[str, Any] = json.loads(json.dumps({"format": FORMAT, **key}))
    return found


def read_key(folder: Where) -> dict[str, Any]:
    """What the rows of a store are made of. Raises StoreError when the directory holds no store."""
    opened = Folder(folder)
    if not opened.has(KEY):
        told = (
            f" beside {MANIFEST}: the command that made the store mends it" if opened.has(MANIFEST) else ", so no store"
        )
        raise StoreError(f"{folder}: no {KEY}{told}. A run's stores are in its rollouts/stage-N.")
    return opened.read_object(KEY)


def read_manifest(folder: Where) -> Manifest | None:
    """The manifest of a finished store, or None. Raises DamagedError when it is not as it was written, StoreError when
    another version wrote it."""
    opened = Folder(folder)
    if not opened.has(MANIFEST):
        return None
    content = opened.read_object(MANIFEST)
    if (found := content.get("format", FORMAT)) != FORMAT:
        raise StoreError(
            f"{opened / MANIFEST}: expected format {FORMAT}, found {found}: another version of this program wrote it. "
            "Use that, or choose another run.dir."
        )
    if content.pop("digest", "") != digest_of(content):
        raise DamagedError(f"{opened / MANIFEST}: changed after it was written")
    del content["format"]
    return Manifest(**content)


def read_rows(file: Any, where: Folder) -> pa.Table:
    """The table in a shard. Raises DamagedError when a byte of it is not as it was written."""
    with undamaged(where):
        # Without Arrow's threads: a process that ends while they do is aborted now and then, and a shard is small.
        return pq.ParquetFile(file, page_checksum_verification=True).read(use_threads=False)


def account_in(file: Any, where: Folder) -> tuple[Account, str]:
    """The account of a shard, and the digest of the key that its rows were made by. Raises DamagedError when they
    cannot be read, or are not those of the file's rows and name."""
    with undamaged(where):
        found = pq.read_metadata(file)
        content = json.loads(found.metadata[b"account"])
        account = Account(
            asked={int(position): digest for position, digest in content["asked"].items()},
            rejected={int(position): Rejected(**one) for position, one in content["rejected"].items()},
            noted=content["noted"],
        )
        if found.num_rows != account.rows or not str(where).endswith(f"/{account.name}"):
            raise ValueError(f"{found.num_rows} rows and an account of {account.rows} in {account.name}")
        return account, found.metadata[b"key"].decode()


def read_accounts(
    folder: Where, within: range | None = None, on_damage: Callable[[DamagedError], None] | None = None
) -> dict[str, Account]:
    """Shard → account, in the order of their first positions. within: of the shards that begin at one of these
    positions. on_damage: told of shards that are damaged, which are left out. Raises DamagedError without it."""
    return {name: account for name, (account, _) in footers(folder, within, on_damage).items()}


def footers(
    folder: Where, within: range | None, on_damage: Callable[[DamagedError], None] | None
) -> dict[str, tuple[Account, str]]:
    """``read_accounts`` with what ``account_in`` says of each shard."""
    opened = Folder(folder)
    names = [name for name in opened.names(SHARD) if within is None or first_position(name) in within]

    def read(name: str) -> tuple[Account, str] | None:
        try:
            with opened.open(name) as file:
                return account_in(file, opened / name)
        except DamagedError as error:
            if on_damage is None:
                raise
            on_damage(error)
            return None

    with ThreadPoolExecutor(1 if opened.on_disk else _READ_AT_ONCE) as threads:
        return {name: found for name, found in zip(names, threads.map(read, names), strict=True) if found is not None}


@dataclass(frozen=True, kw_only=True)
class Survey:
    """All files of a store, read whole."""

    accounts: dict[str, Account]
    """Of the shards that are as they were written."""
    digests: dict[str, str]
    """SHA-256 of these."""
    broken: dict[str, str]
    """Every other file of the store → what is wrong with it."""


def survey(folder: Where) -> Survey:
    """Read every file of a store, finished or not. Raises StoreError when it cannot be listed."""
    opened = Folder(folder)
    found = Survey(accounts={}, digests={}, broken={})

    @contextmanager
    def noting(name: str) -> Iterator[None]:
        try:
            yield
        except DamagedError as error:
            found.broken[name] = str(error)

    manifest = key = listed = None
    with noting(MANIFEST):
        if (manifest := read_manifest(opened)) is not None:
            listed = {shard["name"]: shard["sha256"] for shard in manifest.shards}
    with noting(KEY):
        key = digest_of(read_key(opened)) if opened.has(KEY) else None
    if manifest is not None and key != manifest.key:
        key = manifest.key
        found.broken.setdefault(KEY, f"{opened / KEY}: not the key that the rows were made by")
    taken = set[int]()
    for name in opened.names(SHARD):
        with noting(name):
            where, content = opened / name, opened.read(name)
            digest = hashlib.sha256(content).hexdigest()
            if listed is not None and (expected := listed.pop(name, "")) != digest:
                told = "other bytes than the manifest says" if expected else "not in the manifest"
                raise DamagedError(f"{where}: {told}")
            account, made_by = account_in(pa.BufferReader(content), where)
            if key not in (None, made_by):
                raise DamagedError(f"{where}: made by another recipe than that of key.json, or in another store")
            if listed is None:
                rows = read_rows(pa.BufferReader(content), where)
                if sorted(rows["position"].to_pylist()) != sorted(account.asked.keys() - account.rejected.keys()):
                    raise DamagedError(f"{where}: its rows are not those of its account")
            if twice := taken & account.asked.keys():
                raise DamagedError(
                    f"{where}: holds questions that another shard holds too, position {min(twice)} first"
                )
            found.accounts[name], found.digests[name] = account, digest
            taken |= account.asked.keys()
    found.broken.update({name: f"{opened / name}: in the manifest, but gone" for name in listed or {}})
    return found


def set_aside(folder: Where, broken: Mapping[str, str]) -> None:
    """Rename what a survey found broken, so that it is made again. Raises StoreError when that cannot be done."""
    opened = Folder(folder)
    for name in sorted(broken.keys() - {KEY}):  # a writer, who knows what the key must be, writes it over
        kept = ""
        if opened.has(name):
            opened.move(name, opened, name + DAMAGED)
            kept = f"; what is there is kept as {name}{DAMAGED}"
        say(f"{broken[name]}. It is made again{kept}")


def reopen(folder: Where, broken: Mapping[str, str]) -> None:
    """Have a writer go on with a finished store, without what a survey found broken. Raises StoreError."""
    set_aside(folder, broken)
    if (opened := Folder(folder)).has(MANIFEST):
        opened.remove(MANIFEST)
