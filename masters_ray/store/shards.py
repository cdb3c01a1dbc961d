"""The files of a store (docs/STORE.md): its key, its shards with their accounts, its manifest; reads and writes them.
Damage to a file costs only this file: a writer that resumes sets it aside, and its questions are asked again."""

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import TypeAdapter

from masters_ray.errors import DamagedError, StoreError
from masters_ray.progress import warn
from masters_ray.records import Rejected
from masters_ray.store.folder import DAMAGED, Folder, Where, undamaged
from masters_ray.store.rows import PARQUET

MANIFEST = "manifest.json"
KEY = "key.json"
SHARD = "shard-"  # prefix of the names of shards
FORMAT = 9
OTHER_RECIPE = (
    "Set it back, or choose another run.dir (and rollout.store) and name the directory of these stores in "
    "rollout.reuse: rows of the same recipe are taken over by question."
)
"""What helps when a store was made by another recipe, or of other questions."""
_ENDING = ".parquet"


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a finished store holds."""

    rows: int
    shards: list[dict[str, Any]]  # name, rows and sha256 of each shard, in the order of their rows
    made_by: dict[str, Any]  # what the writer noted of the whole store: ratio, sparsity, digests, seconds, counts
    key: str  # digest of the store's key


@dataclass(frozen=True, kw_only=True)
class Account:
    """The questions of a shard."""

    asked: dict[int, str]  # position → digest of each question
    rejected: dict[int, Rejected]  # position → why the question was set aside; all other questions have a row
    noted: dict[str, Any]  # what else the writer notes of the shard: counts, seconds

    @property
    def rows(self) -> int:
        return len(self.asked) - len(self.rejected)

    @property
    def name(self) -> str:
        """Name of the shard's file; sorted names give rows in the order of their positions."""
        return f"{SHARD}{min(self.asked):08d}{_ENDING}"


_ACCOUNT = TypeAdapter(Account)


def first_position(name: str) -> int:
    """Returns the first position of a shard from its name."""
    return int(name.removeprefix(SHARD).removesuffix(_ENDING))


def digest_of(content: Any) -> str:
    """Returns the SHA-256 of plain values (JSON with sorted keys)."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def difference(folder: Where, wanted: Mapping[str, Any]) -> str:
    """Describes how a store's key differs from the wanted values; "" when it does not, or when there is no key that can
    be read, which a writer mends."""
    try:
        made = read_key(folder)
    except StoreError:
        return ""
    now = json.loads(json.dumps(wanted))
    names = sorted(name for name in now if made.get(name) != now[name])
    return "; ".join(f"{name}: {made.get(name)!r} there, {now[name]!r} now" for name in names)


def read_key(folder: Where) -> dict[str, Any]:
    """Returns the key of a store: what its rows are made of. Raises StoreError when the directory holds no store."""
    opened = Folder(folder)
    if not opened.has(KEY):
        raise StoreError(f"{folder}: no {KEY}, so no store (a run's are in its rollouts/stage-N), or a damaged one")
    return opened.read_object(KEY)


def read_manifest(folder: Where) -> Manifest | None:
    """Returns the manifest of a finished store, or None. Raises DamagedError when it has changed since it was written,
    StoreError when another version of the format wrote it."""
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
    """Returns the table in a shard. Raises DamagedError when it cannot be read or a page's checksum differs."""
    with undamaged(where):
        # Without Arrow's threads, as a process that ends while they end is sometimes aborted, and a shard is small.
        return pq.ParquetFile(file, page_checksum_verification=True).read(use_threads=False)


def account_in(file: Any, where: Folder) -> tuple[Account, str]:
    """Returns the account of a shard and the digest of its rows' key. Raises DamagedError when they cannot be read, or
    the account does not match the file's name and number of rows."""
    with undamaged(where):
        found = pq.read_metadata(file)
        account = _ACCOUNT.validate_json(found.metadata[b"account"])
        if found.num_rows != account.rows or not str(where).endswith(f"/{account.name}"):
            raise ValueError(f"{found.num_rows} rows and an account of {account.rows} in {account.name}")
        return account, found.metadata[b"key"].decode()


def read_accounts(folder: Where, within: range | None = None) -> dict[str, Account]:
    """Returns shard → account, in the order of first positions; leaves out damaged shards, and names them in a message.
    within: only shards whose first position is in it."""
    opened = Folder(folder)

    def read(name: str) -> Account | None:
        try:
            with opened.open(name) as file:
                return account_in(file, opened / name)[0]
        except DamagedError as error:
            warn(str(error))
            return None

    names = [name for name in opened.names(SHARD) if within is None or first_position(name) in within]
    with ThreadPoolExecutor(1 if opened.on_disk else 32) as threads:  # a read of an object waits for the network
        return {name: found for name, found in zip(names, threads.map(read, names), strict=True) if found is not None}


@dataclass(frozen=True, kw_only=True)
class Survey:
    """The result of reading all files of a store completely."""

    accounts: dict[str, Account]  # undamaged shard → its account
    digests: dict[str, str]  # undamaged shard → SHA-256 of its file
    made_by: set[str]  # digests of the keys that the shards carry
    broken: dict[str, str]  # damaged or missing file of the store → what is wrong with it


def survey(folder: Where, key: str | None = None) -> Survey:
    """Reads every file of a store, finished or not. key: digest of the key that the shards must have; default: that of
    the manifest, or of key.json."""
    opened = Folder(folder)
    found = Survey(accounts={}, digests={}, made_by=set(), broken={})

    @contextmanager
    def noting(name: str) -> Iterator[None]:
        try:
            yield
        except DamagedError as error:
            found.broken[name] = str(error)

    listed: dict[str, str] | None = None
    with noting(MANIFEST):
        if (manifest := read_manifest(opened)) is not None:
            listed, key = {shard["name"]: shard["sha256"] for shard in manifest.shards}, manifest.key
    with noting(KEY):
        there = digest_of(read_key(opened)) if opened.has(KEY) else None
        if listed is not None and there != key:
            raise DamagedError(f"{opened / KEY}: not the key that the rows were made by")
        key = key or there
    taken = set[int]()
    for name in opened.names(SHARD):
        with noting(name):
            where, content = opened / name, opened.read(name)
            digest = hashlib.sha256(content).hexdigest()
            if listed is not None and listed.pop(name, None) != digest:
                raise DamagedError(f"{where}: not a file that the manifest lists")
            account, made_by = account_in(pa.BufferReader(content), where)
            found.made_by.add(made_by)
            if key not in (None, made_by):
                raise DamagedError(f"{where}: made by another recipe than that of key.json, or in another store")
            if listed is None:
                read_rows(pa.BufferReader(content), where)
            if twice := taken & account.asked.keys():
                raise DamagedError(f"{where}: position {min(twice)} is in another shard already")
            found.accounts[name], found.digests[name] = account, digest
            taken |= account.asked.keys()
    found.broken.update({name: f"{opened / name}: in the manifest, but gone" for name in listed or {}})
    return found


class Writer:
    """Writes a store shard by shard, in any order; resumes a store that an earlier writer of the same key left."""

    def __init__(self, folder: Where, key: Mapping[str, Any]) -> None:
        """Sets damaged files aside. Raises StoreError when the store is finished and undamaged, or when its shards were
        written with another key."""
        self.folder = Folder(folder)
        self.key: dict[str, Any] = json.loads(json.dumps({"format": FORMAT, **key}))  # as ``read_key`` returns it
        self._key = digest_of(self.key)
        found = survey(self.folder, self._key)
        finished = self.folder.has(MANIFEST)
        if finished and not found.broken:
            raise StoreError(f"{folder}: holds a finished store, which is never written over. Choose another run.dir.")
        if found.made_by and self._key not in found.made_by:
            other = difference(self.folder, self.key) or f"{KEY} is gone, or says more than is known here"
            raise StoreError(f"{folder}: its rows were made by something else ({other}). {OTHER_RECIPE}")
        self.folder.write(KEY, json.dumps(self.key, indent=1).encode())
        for name in sorted(found.broken.keys() - {KEY}):
            warn(f"{found.broken[name]}. It is made again; a damaged file is kept as *{DAMAGED}")
            if self.folder.has(name):
                self.folder.rename(name, name + DAMAGED)
        if finished and MANIFEST not in found.broken:
            self.folder.remove(MANIFEST)
        self._lock = threading.Lock()
        self._accounts, self._digests = found.accounts, found.digests
        self._asked = {position for account in found.accounts.values() for position in account.asked}

    @property
    def accounts(self) -> list[Account]:
        """Accounts of the store's shards, also of those that an earlier writer left."""
        return list(self._accounts.values())

    def write(self, rows: pa.Table, account: Account) -> None:
        """Adds a shard; thread-safe. Raises StoreError when rows and reasons are not those of the questions asked, when
        a question is in another shard too, or when the file cannot be written."""
        stored = rows["position"].to_pylist()
        if sorted([*stored, *account.rejected]) != sorted(account.asked):
            raise StoreError(
                f"{self.folder}: expected a row or a reason for each of {sorted(account.asked)}, "
                f"found rows of {stored} and reasons for {sorted(account.rejected)}"
            )
        file = pa.BufferOutputStream()
        metadata = {b"account": json.dumps(asdict(account)), b"key": self._key}
        pq.write_table(rows.replace_schema_metadata(metadata), file, **PARQUET)
        content = file.getvalue()
        with self._lock:
            if twice := self._asked & account.asked.keys():
                raise StoreError(f"{self.folder}: position {min(twice)} of {account.name} is in another shard already")
            self._asked |= account.asked.keys()
        self.folder.write(account.name, content)
        with self._lock:
            self._accounts[account.name], self._digests[account.name] = account, hashlib.sha256(content).hexdigest()

    def discard(self, accounts: Mapping[str, Account]) -> None:
        """Deletes these shards, so that their questions can be stored again. Raises StoreError when that fails."""
        for name, account in accounts.items():
            self.folder.remove(name)
            with self._lock:
                self._asked -= account.asked.keys()
                del self._accounts[name], self._digests[name]

    def finish(self, made_by: Mapping[str, Any]) -> Manifest:
        """Writes the manifest. Raises StoreError when that fails."""
        listed = [
            {"name": name, "rows": account.rows, "sha256": self._digests[name]}
            for name, account in sorted(self._accounts.items())
        ]
        rows = sum(account.rows for account in self._accounts.values())
        manifest = Manifest(rows=rows, shards=listed, made_by=dict(made_by), key=self._key)
        content = {"format": FORMAT, **asdict(manifest)}
        self.folder.write(MANIFEST, json.dumps(content | {"digest": digest_of(content)}, indent=1).encode())
        return manifest
