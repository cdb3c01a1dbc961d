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
from masters_ray.progress import say
from masters_ray.store import shards
from masters_ray.store.folder import DAMAGED, Folder, Where
from masters_ray.store.rows import PARQUET
from masters_ray.store.shards import FORMAT, KEY, MANIFEST, Account, Manifest

OTHER_RECIPE = (
    "Set it back, or choose another run.dir (and rollout.store) and name the directory of these stores in "
    "rollout.reuse: rows of the same recipe are taken over by question."
)
"""What helps when a store was made by another recipe, or of other questions."""


class Writer:
    """Writes a store shard by shard, in any order; resumes a store that an earlier writer of the same key left."""

    def __init__(self, folder: Where, key: Mapping[str, Any]) -> None:
        """Sets damaged files aside. Raises StoreError when the store is finished and undamaged, or when its shards were
        written with another key."""
        self._folder = Folder(folder)
        self.key: dict[str, Any] = json.loads(json.dumps({"format": FORMAT, **key}))
        """As ``read_key`` returns it."""
        self._key = shards.digest_of(self.key)
        found = shards.survey(self._folder, self._key)
        finished = self._folder.has(MANIFEST)
        if finished and not found.broken:
            raise StoreError(f"{folder}: holds a finished store, which is never written over. Choose another run.dir.")
        if found.made_by and self._key not in found.made_by:
            other = shards.difference(self._folder, self.key) or f"{KEY} is gone, or says more than is known here"
            raise StoreError(f"{folder}: its rows were made by something else ({other}). {OTHER_RECIPE}")
        self._folder.write(KEY, json.dumps(self.key, indent=1).encode())
        for name in sorted(found.broken.keys() - {KEY}):
            say(f"{found.broken[name]}. It is made again; a damaged file is kept as *{DAMAGED}")
            if self._folder.has(name):
                self._folder.rename(name, name + DAMAGED)
        if finished and MANIFEST not in found.broken:
            self._folder.remove(MANIFEST)
        self._lock = threading.Lock()
        self._accounts, self._digests = found.accounts, found.digests
        self._asked = {position for account in found.accounts.values() for position in account.asked}

    def write(self, rows: pa.Table, account: Account) -> None:
        """Adds a shard; thread-safe. Raises StoreError when rows and reasons are not those of the questions asked, when
        a question is in another shard too, or when the file cannot be written."""
        stored = rows["position"].to_pylist()
        if sorted([*stored, *account.rejected]) != sorted(account.asked):
            raise StoreError(
                f"{self._folder}: expected a row or a reason for each of {sorted(account.asked)}, "
                f"found rows of {stored} and reasons for {sorted(account.rejected)}"
            )
        file = pa.BufferOutputStream()
        metadata = {b"account": json.dumps(asdict(account)), b"key": self._key}
        pq.write_table(rows.replace_schema_metadata(metadata), file, **PARQUET)
        content = file.getvalue()
        with self._lock:
            if twice := self._asked & account.asked.keys():
                raise StoreError(f"{self._folder}: position {min(twice)} of {account.name} is in another shard already")
            self._asked |= account.asked.keys()
        self._folder.write(account.name, content)
        with self._lock:
            self._accounts[account.name], self._digests[account.name] = account, hashlib.sha256(content).hexdigest()

    def discard(self, accounts: Mapping[str, Account]) -> None:
        """Deletes these shards, so that their questions can be stored again. Raises StoreError when that fails."""
        for name, account in accounts.items():
            self._folder.remove(name)
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
        self._folder.write(MANIFEST, json.dumps(content | {"digest": shards.digest_of(content)}, indent=1).encode())
        return manifest
