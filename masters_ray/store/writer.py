"""Filling the store of one stage, shard by shard (``shards`` says what its files are)."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

import pyarrow as pa

from masters_ray.errors import DamagedError, StoreError
from masters_ray.progress import say
from masters_ray.store import shards
from masters_ray.store.folder import Folder, Where
from masters_ray.store.shards import KEY, MANIFEST, Account, Manifest

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
        self._shards: dict[str, dict[str, Any]] = {}
        """As the manifest lists them."""
        self._taken: set[int] = set()
        """Positions of all questions that they account for."""
        found = shards.survey(self._folder)
        shards.set_aside(self._folder, found.broken)
        for name, account in found.accounts.items():
            self._add(account, found.digests[name])

    def write(self, rows: pa.Table, account: Account) -> None:
        """Add a shard; may be called from several threads. Raises StoreError when a row was not asked for, when a
        question has neither a row nor a reason, or when the file cannot be written."""
        stored = rows["position"].to_pylist()
        if sorted([*stored, *account.rejected]) != sorted(account.asked):
            raise StoreError(
                f"{self._folder}: asked {sorted(account.asked)}, stored {stored}, set aside "
                f"{sorted(account.rejected)}: each question needs a row or a reason"
            )
        content = shards.shard_bytes(rows, account, self._key)
        self._folder.write(account.name, content)
        self._add(account, hashlib.sha256(content).hexdigest())

    def discard(self, accounts: Mapping[str, Account]) -> None:
        """Take out these shards: their questions may be stored anew. Raises StoreError when one cannot be deleted."""
        for account in accounts.values():
            self._folder.remove(account.name)
            self._forget(account)

    def retire(self, accounts: Mapping[str, Account]) -> None:
        """Take out these shards, but keep their rows where ``retired`` finds them until the store is finished. Raises
        StoreError when one cannot be moved."""
        into = self._folder / f"{_RETIRED}{len(retired(self._folder))}"
        for account in accounts.values():
            self._folder.move(account.name, into)
            self._forget(account)

    def finish(self, made_by: Mapping[str, Any]) -> Manifest:
        """Write the manifest: from now on the directory is a store. Raises StoreError when it cannot be written."""
        listed = [shard for _, shard in sorted(self._shards.items())]
        manifest = Manifest(
            rows=sum(shard["rows"] for shard in listed),
            shards=listed,
            made_by=json.loads(json.dumps(dict(made_by))),
            key=self._key,
        )
        content = {"format": shards.FORMAT, **asdict(manifest)}
        self._folder.write(MANIFEST, json.dumps(content | {"digest": shards.digest_of(content)}, indent=1).encode())
        for folder in retired(self._folder):
            self._folder.remove_folder(folder)
        return manifest

    def _add(self, account: Account, digest: str) -> None:
        with self._lock:
            if twice := self._taken & account.asked.keys():
                raise StoreError(
                    f"{self._folder}: {account.name} holds questions that another shard holds too, position "
                    f"{min(twice)} first. Did two runs write here? Delete one of the shards."
                )
            self._taken |= account.asked.keys()
            self._shards[account.name] = {"name": account.name, "rows": account.rows, "sha256": digest}

    def _forget(self, account: Account) -> None:
        with self._lock:
            self._taken -= account.asked.keys()
            del self._shards[account.name]

    def _claim(self, wanted: dict[str, Any]) -> None:
        """Write the key, unless the shards were made by another."""
        found: dict[str, Any] = {}
        try:
            found = self._folder.read_object(KEY) if self._folder.has(KEY) else {}
        except DamagedError as error:
            say(str(error))
        if found == wanted:
            return
        there = self._folder.names(shards.SHARD)
        if found.get("format", shards.FORMAT) == shards.FORMAT and _keys_in(self._folder, there) == {self._key}:
            say(f"{self._folder / KEY}: not what the shards were made by; it is written again")
        elif found or there:
            names = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
            told = "; ".join(f"{name}: {found.get(name)!r} there, {wanted.get(name)!r} now" for name in names)
            raise StoreError(
                f"{self._folder}: its rows were made by something else, and are not mixed with others "
                f"({told if found else f'{KEY} is lost, and its shards are not of this recipe'}). Choose another "
                "run.dir, set it back, or delete the directory."
            )
        self._folder.write(KEY, json.dumps(wanted, indent=1).encode())


def _keys_in(folder: Folder, names: Iterable[str]) -> set[str]:
    """Digests of the keys that those of the shards carry that can be read."""
    found = set()
    for name in names:
        try:
            with folder.open(name) as file:
                found.add(shards.account_in(file, folder / name)[1])
        except DamagedError:
            continue
    return found


def retired(folder: Where) -> list[str]:
    """Directories of a store with shards that a writer took out of it and whose rows may be needed."""
    return [name for name in Folder(folder).folders() if name.startswith(_RETIRED)]
