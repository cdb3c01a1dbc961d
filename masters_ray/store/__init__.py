"""The rollout store: groups as parquet shards with a manifest."""

from masters_ray.store.account import Account, first_position, is_shard, read_accounts
from masters_ray.store.folder import Folder, Where
from masters_ray.store.lookup import Lookup, moved
from masters_ray.store.manifest import KEY, MANIFEST, Manifest, as_key, digest_of, read_key, read_manifest
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
    Writer,
    open_dataset,
    read,
    read_judged,
    read_shard,
    retired,
    shard_names,
)
from masters_ray.store.survey import Survey, reopen, survey

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
    "Survey",
    "Where",
    "Writer",
    "answer_tokens",
    "as_key",
    "digest_of",
    "first_position",
    "groups",
    "is_shard",
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
    "reopen",
    "retired",
    "sequence_tokens",
    "shard_names",
    "survey",
    "table",
    "table_of",
    "top_scores",
]
