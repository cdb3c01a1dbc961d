"""Filling the store of one stage, shard by shard (``shards`` says what its files are)."""

from __future__ import annotations

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
        wanted = shards.as_key(key)
        self._key = shards.digest_of(wanted)
        self._claim(wanted)
        self._lock = threading.Lock()
        found = shards.survey(self._folder)
        shards.set_aside(self._folder, found.broken)
        self._accounts, self._digests = found.accounts, found.digests

    def write(self, rows: pa.Table, account: Account) -> None:
        """Add a shard; may be called from several threads. Raises StoreError when a row was not asked for, when a
        question has neither a row nor a reason, or when the file cannot be written."""
        stored = rows["position"].to_pylist()
        if sorted([*stored, *account.rejected]) != sorted(account.asked):
            raise StoreError(
                f"{self._folder}: asked {sorted(account.asked)}, stored {stored}, set aside "
                f"{sorted(account.rejected)}: each question needs a row or a reason"
            )
        file = pa.BufferOutputStream()
        metadata = {b"account": json.dumps(asdict(account)), b"key": self._key}
        pq.write_table(rows.replace_schema_metadata(metadata), file, **PARQUET)
        self._folder.write(account.name, content := file.getvalue())
        with self._lock:
            for one in self._accounts.values():
                if twice := one.asked.keys() & account.asked.keys():
                    raise StoreError(
                        f"{self._folder}: {account.name} holds questions that another shard holds too, position "
                        f"{min(twice)} first. Did two runs write here? Delete one of the shards."
                    )
            self._accounts[account.name], self._digests[account.name] = account, hashlib.sha256(content).hexdigest()

    def discard(self, accounts: Mapping[str, Account]) -> None:
        """Take out these shards: their questions may be stored anew. Raises StoreError when one cannot be deleted."""
        for name in accounts:
            self._folder.remove(name)
            self._forget(name)

    def retire(self, accounts: Mapping[str, Account]) -> None:
        """Take out these shards, but keep their rows where ``retired`` finds them until the store is finished. Raises
        StoreError when one cannot be moved."""
        into = self._folder / f"{_RETIRED}{len(retired(self._folder))}"
        for name in accounts:
            self._folder.move(name, into)
            self._forget(name)

    def finish(self, made_by: Mapping[str, Any]) -> Manifest:
        """Write the manifest: from now on the directory is a store. Raises StoreError when it cannot be written."""
        listed = [
            {"name": name, "rows": account.rows, "sha256": self._digests[name]}
            for name, account in sorted(self._accounts.items())
        ]
        rows = sum(account.rows for account in self._accounts.values())
        noted = json.loads(json.dumps(dict(made_by)))
        manifest = Manifest(rows=rows, shards=listed, made_by=noted, key=self._key)
        content = {"format": FORMAT, **asdict(manifest)}
        self._folder.write(MANIFEST, json.dumps(content | {"digest": shards.digest_of(content)}, indent=1).encode())
        for name in retired(self._folder):
            self._folder.remove_folder(name)
        return manifest

    def _forget(self, name: str) -> None:
        with self._lock:
            del self._accounts[name], self._digests[name]

    def _claim(self, wanted: dict[str, Any]) -> None:
        """Write the key, unless the shards were made by another."""
        made_by = {key for _, key in shards.footers(self._folder, None, on_damage=lambda _: None).values()}
        if made_by and self._key not in made_by:
            try:
                found = shards.read_key(self._folder)
                names = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
                told = "; ".join(f"{name}: {found.get(name)!r} there, {wanted.get(name)!r} now" for name in names)
            except StoreError as error:
                told = str(error)
            raise StoreError(
                f"{self._folder}: its rows were made by something else, and are not mixed with others ({told}). Choose "
                "another run.dir, set it back, or delete the directory."
            )
        self._folder.write(KEY, json.dumps(wanted, indent=1).encode())


def retired(folder: Where) -> list[str]:
    """Directories of a store with shards that a writer took out of it and whose rows may be needed."""
    return Folder(folder).folders(_RETIRED)
