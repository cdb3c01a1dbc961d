"""The rollout store: groups as parquet shards with a manifest."""

from masters_ray.store.account import Account, read_accounts
from masters_ray.store.folder import Folder, Where
from masters_ray.store.lookup import Lookup, moved
from masters_ray.store.ragged import Ragged
from masters_ray.store.rows import (
    OWN,
    SCHEMA,
    Row,
    answer_tokens,
    groups,
    left_out,
    own_logprobs,
    sequence_tokens,
    table,
    table_of,
    top_scores,
)
from masters_ray.store.shards import (
    KEY,
    MANIFEST,
    Manifest,
    Writer,
    as_key,
    check_digests,
    open_dataset,
    read,
    read_judged,
    read_key,
    read_manifest,
    read_shard,
    shard_names,
)

__all__ = [
    "KEY",
    "MANIFEST",
    "OWN",
    "SCHEMA",
    "Account",
    "Folder",
    "Lookup",
    "Manifest",
    "Ragged",
    "Row",
    "Where",
    "Writer",
    "answer_tokens",
    "as_key",
    "check_digests",
    "groups",
    "left_out",
    "moved",
    "open_dataset",
    "own_logprobs",
    "read",
    "read_accounts",
    "read_judged",
    "read_key",
    "read_manifest",
    "read_shard",
    "sequence_tokens",
    "shard_names",
    "table",
    "table_of",
    "top_scores",
]
