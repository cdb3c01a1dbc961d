"""Which files of a store are as they were written, and setting the others aside."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow as pa

from masters_ray.errors import DamagedError
from masters_ray.progress import say
from masters_ray.store.account import SHARD, Account, account_in
from masters_ray.store.folder import Folder, Where
from masters_ray.store.manifest import KEY, MANIFEST, digest_of, read_key, read_manifest
from masters_ray.store.rows import groups, table_in


@dataclass(frozen=True, kw_only=True)
class Survey:
    """All files of a store, read whole."""

    accounts: dict[str, Account]
    """Of the shards that are as they were written."""
    digests: dict[str, str]
    """SHA-256 of these."""
    broken: dict[str, str]
    """Every other file of the store → what is wrong with it."""


def survey(folder: Where, *, decoded: bool = False) -> Survey:
    """Read every file of a store, finished or not. decoded: every row, too. Raises StoreError when it cannot be
    listed."""
    opened = Folder(folder)
    broken: dict[str, str] = {}
    manifest = None
    try:
        manifest = read_manifest(opened)
    except DamagedError as error:
        broken[MANIFEST] = str(error)
    key = None
    try:
        key = digest_of(read_key(opened)) if opened.has(KEY) else None
    except DamagedError as error:
        broken[KEY] = str(error)
    if manifest is not None and key != manifest.key:
        key = manifest.key
        broken.setdefault(KEY, f"{opened / KEY}: not the key that the rows were made by")
    listed = None if manifest is None else {shard["name"]: shard["sha256"] for shard in manifest.shards}
    accounts, digests, taken = {}, {}, set[int]()
    for name in opened.names(SHARD):
        try:
            account, digest = _look_at(opened, name, key, None if listed is None else listed.pop(name, ""), decoded)
            if twice := taken & account.asked.keys():
                raise DamagedError(
                    f"{opened / name}: holds questions that another shard holds too, position {min(twice)} first"
                )
        except DamagedError as error:
            broken[name] = str(error)
            continue
        accounts[name], digests[name] = account, digest
        taken |= account.asked.keys()
    broken |= {name: f"{opened / name}: in the manifest, but gone" for name in listed or {}}
    return Survey(accounts=accounts, digests=digests, broken=broken)


def _look_at(folder: Folder, name: str, key: str | None, listed: str | None, decoded: bool) -> tuple[Account, str]:
    """Account and SHA-256 of a shard. key: its key's digest; listed: its SHA-256 in the manifest, if there is one.
    Raises DamagedError."""
    where, content = folder / name, folder.read(name)
    digest = hashlib.sha256(content).hexdigest()
    if listed not in (None, digest):
        raise DamagedError(f"{where}: {'other bytes than the manifest says' if listed else 'not in the manifest'}")
    account = account_in(pa.BufferReader(content), where, key)
    if listed is None or decoded:
        rows = table_in(content, where)
        positions = [one.position for one in groups(rows)] if decoded else rows["position"].to_pylist()
        if sorted(positions) != sorted(account.asked.keys() - account.rejected.keys()):
            raise DamagedError(f"{where}: its rows are not those of its account")
    return account, digest


def set_aside(folder: Where, broken: Mapping[str, str]) -> None:
    """Rename what a survey found broken, so that it is made again. Raises StoreError when that cannot be done."""
    for name, why in broken.items():
        if name != KEY:  # a writer, who knows what it must be, writes it over
            opened = Folder(folder)
            kept = f"; what is there is kept as {opened.set_aside(name)}" if opened.has(name) else ""
            say(f"{why}. It is made again{kept}")


def reopen(folder: Where, broken: Mapping[str, str]) -> None:
    """Have a writer go on with a finished store, without what a survey found broken. Raises StoreError."""
    set_aside(folder, broken)
    if (opened := Folder(folder)).has(MANIFEST):
        opened.remove(MANIFEST)
