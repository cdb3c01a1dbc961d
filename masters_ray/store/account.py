"""What became of the questions of one shard, kept in the shard's own metadata."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from masters_ray.errors import DamagedError
from masters_ray.records import Rejected
from masters_ray.store.folder import Folder, Where

SHARD = "shard-"
"""How the names of shards begin."""
_ENDING = ".parquet"
_ACCOUNT = b"account"
_KEY = b"key"
_READ_AT_ONCE = 32
"""Of an object store, where a look takes as long as a message."""


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


def with_account(rows: pa.Table, account: Account, key: str) -> pa.Table:
    """The table as it is written, its account and the digest of the store's key in the file's metadata."""
    content = {
        "asked": account.asked,
        "rejected": {position: asdict(one) for position, one in account.rejected.items()},
        "noted": account.noted,
    }
    return rows.replace_schema_metadata({_ACCOUNT: json.dumps(content), _KEY: key})


def read_accounts(
    folder: Where, within: range | None = None, on_damage: Callable[[DamagedError], None] | None = None
) -> dict[str, Account]:
    """Shard → account, in the order of their first positions. within: of the shards that begin at one of these
    positions. on_damage: told of shards that are damaged, which are left out. Raises DamagedError without it."""
    opened = Folder(folder)
    names = [name for name in opened.names(SHARD) if within is None or first_position(name) in within]

    def read(name: str) -> Account | None:
        try:
            with opened.open(name) as file:
                return account_in(file, opened / name)
        except DamagedError as error:
            if on_damage is None:
                raise
            on_damage(error)
            return None

    if opened.on_disk:
        found = [read(name) for name in names]
    else:
        with ThreadPoolExecutor(_READ_AT_ONCE) as threads:
            found = list(threads.map(read, names))
    return {name: account for name, account in zip(names, found, strict=True) if account is not None}


def account_in(file: Any, where: Folder, key: str | None = None) -> Account:
    """The account that a shard holds. key: digest of the key that its rows must be made by. Raises DamagedError when it
    cannot be read, or is not that of the file's rows and name."""
    try:
        found = pq.read_metadata(file)
        content = json.loads(found.metadata[_ACCOUNT])
        account = Account(
            asked={int(position): digest for position, digest in content["asked"].items()},
            rejected={int(position): Rejected(**one) for position, one in content["rejected"].items()},
            noted=content["noted"],
        )
        made_by = found.metadata[_KEY].decode()
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedError(f"{where}: a damaged shard ({error!r})") from error
    if found.num_rows != account.rows or not str(where).endswith(f"/{account.name}"):
        raise DamagedError(f"{where}: {found.num_rows} rows and an account of {account.rows} in {account.name}")
    if key is not None and made_by != key:
        raise DamagedError(f"{where}: made by another recipe than that of key.json, or in another store")
    return account


def is_shard(name: str) -> bool:
    """Whether a file of a store is one, by its name."""
    return name.startswith(SHARD)


def first_position(name: str) -> int:
    """The first position of a shard, by its name."""
    return int(name.removeprefix(SHARD).removesuffix(_ENDING))
