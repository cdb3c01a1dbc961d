"""The rollout store: groups in parquet shards, with a key and a manifest."""

from masters_ray.store.folder import Folder, Where
from masters_ray.store.reading import Lookup, open_dataset, read, read_judged, read_shard, right_by_dataset, shard_names
from masters_ray.store.rows import LOGPROBS, SCHEMA, answer_tokens, decoded, groups, sequence_tokens, table, top_scores
from masters_ray.store.shards import (
    KEY,
    MANIFEST,
    OTHER_RECIPE,
    SHARD,
    Account,
    Writer,
    difference,
    digest_of,
    first_position,
    read_accounts,
    read_key,
    read_manifest,
    survey,
)
