"""The store of one stage: shards of rows, what made them, and in the end a manifest.

``key.json``                what the rows are made of; rows of another key are never added
``shard-00000032.parquet``  the questions from position 32 on that went through the engines together: rows, and in the
                            file's metadata an account of every question that was asked
``manifest.json``           the shards in the order of their rows; without it the store is not finished

Every file is written under another name, flushed and renamed, so that whatever is killed leaves whole files only.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from masters_ray.errors import StoreError
from masters_ray.records import Rejected, RolloutGroup
from masters_ray.store.rows import PARQUET, SCHEMA, groups, table

if TYPE_CHECKING:
    import ray.data

MANIFEST = "manifest.json"
KEY = "key.json"
_ACCOUNT = b"account"
_FORMAT = 3


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a finished store says of itself."""

    rows: int
    shards: list[dict[str, Any]]
    """name, rows and sha256 of each, in the order of their rows"""
    made_by: dict[str, Any]
    """Whatever the writer noted: ratio, sparsity, digests, seconds, counts."""


@dataclass(frozen=True, kw_only=True)
class Account:
    """What became of the questions of one shard."""

    asked: dict[int, str]
    """Position → digest of each question."""
    rejected: dict[int, Rejected]
    """Questions that were set aside, by position; all others have a row."""
    noted: dict[str, Any]
    """Whatever else the writer notes: counts, seconds."""


class Writer:
    """Fills a store's directory shard by shard, in any order; goes on where an earlier one of the same key stopped."""

    def __init__(self, folder: Path, key: Mapping[str, Any]) -> None:
        """Raises StoreError when the store is finished, when it was begun with another key, when a shard is damaged, or
        when two shards hold the same question."""
        if (folder / MANIFEST).exists():
            raise StoreError(
                f"{folder}: holds a finished store already; it is never written over. Choose another run.dir."
            )
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob("*.tmp"):
            leftover.unlink()
        self._folder = folder
        self._claim(key)
        self._lock = threading.Lock()
        self.accounts: dict[str, Account] = {}
        """By shard, those of earlier writers too."""
        self.asked: dict[int, str] = {}
        """Position → digest of every question that need not be asked again."""
        for name, account in read_accounts(folder).items():
            self._add(name, account)

    @property
    def rejected(self) -> list[Rejected]:
        """Questions that were set aside, in their order."""
        found = {position: one for account in self.accounts.values() for position, one in account.rejected.items()}
        return [found[position] for position in sorted(found)]

    def write(self, groups: Iterable[RolloutGroup], account: Account) -> None:
        """Add a shard; may be called from several threads. Raises StoreError when a group was not asked for, when a
        question has neither a group nor a reason, or when the file cannot be written."""
        content = table(groups)
        stored = content["position"].to_pylist()
        if sorted([*stored, *account.rejected]) != sorted(account.asked):
            raise StoreError(
                f"{self._folder}: asked {sorted(account.asked)}, stored {stored}, set aside "
                f"{sorted(account.rejected)}: each question needs a row or a reason"
            )
        name = f"shard-{min(account.asked):08d}.parquet"
        content = content.replace_schema_metadata({_ACCOUNT: json.dumps(_plain(account))})
        file = self._folder / name
        temporary = file.with_name(name + ".tmp")
        try:
            pq.write_table(content, temporary, **PARQUET)
            _flush(temporary)
            temporary.replace(file)
        except OSError as error:
            raise StoreError(
                f"{file}: cannot be written ({error}). Make room or mend the directory, and call again: what is stored "
                "stays."
            ) from error
        self._add(name, account)

    def finish(self, made_by: Mapping[str, Any]) -> Manifest:
        """Write the manifest: from now on the directory is a store."""
        shards = [
            {
                "name": name,
                "rows": len(account.asked) - len(account.rejected),
                "sha256": hashlib.sha256((self._folder / name).read_bytes()).hexdigest(),
            }
            for name, account in sorted(self.accounts.items())
        ]
        rows = sum(len(account.asked) - len(account.rejected) for account in self.accounts.values())
        manifest = Manifest(rows=rows, shards=shards, made_by=dict(made_by))
        content = {"format": _FORMAT, "rows": manifest.rows, "shards": shards, "made_by": manifest.made_by}
        _write_json(self._folder / MANIFEST, content)
        return manifest

    def _claim(self, key: Mapping[str, Any]) -> None:
        file, wanted = self._folder / KEY, json.loads(json.dumps({"format": _FORMAT, **key}))
        if not file.exists():
            if any(self._folder.glob("shard-*")):
                raise StoreError(f"{self._folder}: shards without {KEY}. Delete the directory to make them again.")
            _write_json(file, wanted)
            return
        found = _read_json(file)
        if different := sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name)):
            told = "; ".join(f"{name}: {found.get(name)!r} there, {wanted.get(name)!r} now" for name in different)
            raise StoreError(
                f"{self._folder}: its rows were made by something else, and are not mixed with others ({told}). "
                "Choose another run.dir, set it back, or delete the directory."
            )

    def _add(self, name: str, account: Account) -> None:
        with self._lock:
            if twice := account.asked.keys() & self.asked.keys():
                raise StoreError(
                    f"{self._folder}: {name} holds questions that another shard holds too, position {min(twice)} "
                    "first. Did two runs write here? Delete one of the shards."
                )
            self.asked |= account.asked
            self.accounts[name] = account


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a finished store, or None. Raises StoreError when it is damaged or a shard is gone."""
    file = folder / MANIFEST
    if not file.exists():
        return None
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        version = content["format"]
        manifest = Manifest(rows=content["rows"], shards=content["shards"], made_by=content["made_by"])
    except (ValueError, KeyError) as error:
        raise StoreError(
            f"{file}: expected a manifest, found {error!r}. Delete {folder} to make its rows again."
        ) from error
    if version != _FORMAT:
        raise StoreError(f"{file}: expected format {_FORMAT}, found {version}. Delete {folder} to make its rows again.")
    for shard in manifest.shards:
        if not (folder / shard["name"]).is_file():
            raise StoreError(
                f"{folder}: {shard['name']} is in the manifest but gone. Delete {folder} to make it again."
            )
    return manifest


def read_key(folder: Path) -> dict[str, Any]:
    """What the rows of a store are made of. Raises StoreError when the directory holds no store."""
    if not (folder / KEY).is_file():
        raise StoreError(f"{folder}: no {KEY}, so no store. A run's stores are in its rollouts/stage-N.")
    key: dict[str, Any] = _read_json(folder / KEY)
    return key


def read_accounts(folder: Path) -> dict[str, Account]:
    """Shard → account, in the order of their first positions. Raises StoreError when a shard is damaged."""
    return {file.name: _read_account(file) for file in sorted(folder.glob("shard-*.parquet"))}


def shard_files(folder: Path) -> list[str]:
    """The shards of a finished store, in the order of their rows. Raises StoreError when it is not finished."""
    manifest = read_manifest(folder)
    if manifest is None:
        raise StoreError(f"{folder}: no {MANIFEST}, so no finished store. Run the stage that makes it again.")
    return [str((folder / shard["name"]).resolve()) for shard in manifest.shards if shard["rows"]]


def open_dataset(folders: Iterable[Path]) -> ray.data.Dataset:
    """Finished stores as one Ray Dataset: rows of SCHEMA, store after store, in the order of their positions."""
    import ray.data

    # The newer reader starts eight actors to look at the files' footers, which costs a small machine a quarter of a
    # minute; the manifest has named the files already.
    ray.data.DataContext.get_current().use_datasource_v2 = False
    return ray.data.read_parquet([file for folder in folders for file in shard_files(folder)], schema=SCHEMA)


def read(folder: Path) -> Iterable[RolloutGroup]:
    """The groups of a finished store, without Ray."""
    for file in shard_files(folder):
        yield from groups(pq.read_table(file))


def _read_account(file: Path) -> Account:
    try:
        content = json.loads((pq.read_metadata(file).metadata or {})[_ACCOUNT])
        return Account(
            asked={int(position): digest for position, digest in content["asked"].items()},
            rejected={int(position): Rejected(**one) for position, one in content["rejected"].items()},
            noted=content["noted"],
        )
    except (pa.ArrowException, ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{file}: a damaged shard ({error!r}). Delete it to make its rows again.") from error


def _plain(account: Account) -> dict[str, Any]:
    return {
        "asked": account.asked,
        "rejected": {position: asdict(one) for position, one in account.rejected.items()},
        "noted": account.noted,
    }


def _read_json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise StoreError(f"{file}: not JSON ({error}). Delete {file.parent} to make its rows again.") from error


def _write_json(file: Path, content: Any) -> None:
    temporary = file.with_name(file.name + ".tmp")
    temporary.write_text(json.dumps(content, indent=1), encoding="utf-8")
    _flush(temporary)
    temporary.replace(file)


def _flush(file: Path) -> None:
    with file.open("rb") as content:
        os.fsync(content.fileno())
