"""The rollout store: groups as parquet shards with a manifest."""

from masters_ray.store.rows import SCHEMA, groups, sequence_tokens, table
from masters_ray.store.shards import (
    MANIFEST,
    Account,
    Manifest,
    Writer,
    open_dataset,
    read,
    read_accounts,
    read_manifest,
    shard_files,
)

__all__ = [
    "MANIFEST",
    "SCHEMA",
    "Account",
    "Manifest",
    "Writer",
    "groups",
    "open_dataset",
    "read",
    "read_accounts",
    "read_manifest",
    "sequence_tokens",
    "shard_files",
    "table",
]
