"""Writes the store of a stage, shard by shard; ``shards`` describes its files."""

import hashlib
import json
import threading
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from masters_ray.errors import StoreError
from masters_ray.store import shards
from masters_ray.store.folder import Folder, Where
from masters_ray.store.rows import PARQUET
from masters_ray.store.shards import FORMAT, KEY, MANIFEST, Account, Manifest

_RETIRED = "retired-"
"""Prefix of directories with shards whose questions have moved to other positions or are no longer asked."""


class Writer:
    """Writes a store shard by shard, in any order; resumes a store that an earlier writer of the same key left."""

    def __init__(self, folder: Where, key: Mapping[str, Any]) -> None:
        """Sets damaged shards aside. Raises StoreError when the store is finished, or when its shards were written with
        another key."""
        self._folder = Folder(folder)
        if self._folder.has(MANIFEST):
            raise StoreError(
                f"{folder}: holds a finished store already; it is never written over. Choose another run.dir."
            )
        wanted = shards.as_key(key)
        self._key = shards.digest_of(wanted)
        found = shards.survey(self._folder, self._key)
        if found.made_by and self._key not in found.made_by:
            raise StoreError(
                f"{folder}: its rows were made by something else, and are not mixed with others "
                f"({_difference(self._folder, wanted)}). Choose another run.dir, set it back, or delete the directory."
            )
        self._folder.write(KEY, json.dumps(wanted, indent=1).encode())
        shards.reopen(self._folder, found.broken)
        self._lock = threading.Lock()
        self._accounts, self._digests = found.accounts, found.digests
        self._asked = {position for account in found.accounts.values() for position in account.asked}

    def write(self, rows: pa.Table, account: Account) -> None:
        """Adds a shard; thread-safe. Raises StoreError when a row was not asked for, when a question has neither a row
        nor a reason or is in another shard too, which is left as it is, or when the file cannot be written."""
        stored = rows["position"].to_pylist()
        if sorted([*stored, *account.rejected]) != sorted(account.asked):
            raise StoreError(
                f"{self._folder}: asked {sorted(account.asked)}, stored {stored}, set aside "
                f"{sorted(account.rejected)}: each question needs a row or a reason"
            )
        file = pa.BufferOutputStream()
        metadata = {b"account": json.dumps(asdict(account)), b"key": self._key}
        pq.write_table(rows.replace_schema_metadata(metadata), file, **PARQUET)
        content = file.getvalue()
        with self._lock:
            if twice := self._asked.intersection(account.asked):
                raise StoreError(
                    f"{self._folder}: {account.name} holds questions that another shard holds too, position "
                    f"{min(twice)} first. Did two runs write here? Delete one of the shards."
                )
            self._asked.update(account.asked)
        self._folder.write(account.name, content)
        with self._lock:
            self._accounts[account.name], self._digests[account.name] = account, hashlib.sha256(content).hexdigest()

    def discard(self, accounts: Mapping[str, Account]) -> None:
        """Deletes these shards, so that their questions can be stored again. Raises StoreError when that fails."""
        for name in accounts:
            self._folder.remove(name)
            self._forget(name)

    def retire(self, accounts: Mapping[str, Account]) -> None:
        """Moves these shards out of the store, to a directory in ``retired``, where their rows can be read until the
        store is finished. Raises StoreError when a shard cannot be moved."""
        into = self._folder / f"{_RETIRED}{len(retired(self._folder))}"
        for name in accounts:
            self._folder.move(name, into)
            self._forget(name)

    def finish(self, made_by: Mapping[str, Any]) -> Manifest:
        """Finishes the store: writes the manifest and deletes retired shards. Raises StoreError when that fails."""
        listed = [
            {"name": name, "rows": account.rows, "sha256": self._digests[name]}
            for name, account in sorted(self._accounts.items())
        ]
        rows = sum(account.rows for account in self._accounts.values())
        manifest = Manifest(rows=rows, shards=listed, made_by=dict(made_by), key=self._key)
        content = {"format": FORMAT, **asdict(manifest)}
        self._folder.write(MANIFEST, json.dumps(content | {"digest": shards.digest_of(content)}, indent=1).encode())
        for name in retired(self._folder):
            self._folder.remove_folder(name)
        return manifest

    def _forget(self, name: str) -> None:
        with self._lock:
            self._asked.difference_update(self._accounts.pop(name).asked)
            del self._digests[name]


def _difference(folder: Folder, wanted: Mapping[str, Any]) -> str:
    try:
        found = shards.read_key(folder)
    except StoreError as error:
        return str(error)
    names = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
    return "; ".join(f"{name}: {found.get(name)!r} there, {wanted.get(name)!r} now" for name in names)


def retired(folder: Where) -> list[str]:
    """Returns the names of a store's directories of retired shards (``Writer.retire``)."""
    return Folder(folder).folders(_RETIRED)
