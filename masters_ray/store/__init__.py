"""The rollout store: groups as parquet shards with a manifest."""

from masters_ray.store.rows import SCHEMA, groups, sequence_tokens, table
from masters_ray.store.shards import (
    MANIFEST,
    Manifest,
    Writer,
    open_dataset,
    read,
    read_manifest,
    shard_files,
)

__all__ = [
    "MANIFEST",
    "SCHEMA",
    "Manifest",
    "Writer",
    "groups",
    "open_dataset",
    "read",
    "read_manifest",
    "sequence_tokens",
    "shard_files",
    "table",
]
