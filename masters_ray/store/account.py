"""What became of the questions of one shard, kept in the shard's own metadata."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from masters_ray.errors import StoreError
from masters_ray.records import Rejected
from masters_ray.store.folder import Folder, Where

SHARD = "shard-"
"""How the names of shards begin."""
_ENDING = ".parquet"
_KEY = b"account"
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


def with_account(rows: pa.Table, account: Account) -> pa.Table:
    """The table as it is written, its account in the file's metadata."""
    content = {
        "asked": account.asked,
        "rejected": {position: asdict(one) for position, one in account.rejected.items()},
        "noted": account.noted,
    }
    return rows.replace_schema_metadata({_KEY: json.dumps(content)})


def read_accounts(folder: Where, within: range | None = None) -> dict[str, Account]:
    """Shard → account, in the order of their first positions. within: of the shards that begin at one of these
    positions. Raises StoreError when a shard is damaged."""
    opened = Folder(folder)
    names = [name for name in opened.names(SHARD) if within is None or _first(name) in within]
    if opened.on_disk:
        return {name: _read(opened, name) for name in names}
    with ThreadPoolExecutor(_READ_AT_ONCE) as threads:
        return dict(zip(names, threads.map(lambda name: _read(opened, name), names), strict=True))


def _first(name: str) -> int:
    """The first position of a shard, by its name."""
    return int(name.removeprefix(SHARD).removesuffix(_ENDING))


def _read(folder: Folder, name: str) -> Account:
    try:
        with folder.open(name) as file:
            content = json.loads((pq.read_metadata(file).metadata or {})[_KEY])
        return Account(
            asked={int(position): digest for position, digest in content["asked"].items()},
            rejected={int(position): Rejected(**one) for position, one in content["rejected"].items()},
            noted=content["noted"],
        )
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{folder / name}: a damaged shard ({error!r}). Delete it to make its rows again.") from error
