"""What lies in a store, for people: ``masters-ray store inspect|verify|stats``."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from masters_ray.errors import DamagedError
from masters_ray.store.folder import Folder, Where
from masters_ray.store.reading import read_shard
from masters_ray.store.rows import groups, scores
from masters_ray.store.shards import read_accounts, read_key, read_manifest, survey


def inspect(folder: Where) -> Iterator[str]:
    """How far the store is and what its rows are made of. Raises StoreError when the directory holds none."""
    key, accounts, manifest = read_key(folder), read_accounts(folder), read_manifest(folder)
    asked = sum(len(account.asked) for account in accounts.values())
    rejected = sum(len(account.rejected) for account in accounts.values())
    yield f"{folder}: {'finished' if manifest else 'not finished'}"
    yield f"{asked} questions = {asked - rejected} rows + {rejected} set aside, in {len(accounts)} shards"
    for name, value in key.items():
        yield f"  {name}: {json.dumps(value, ensure_ascii=False)}"


def verify(folder: Where) -> Iterator[str]:
    """Read everything: key, manifest, digests, accounts, every row. Raises DamagedError with all that is wrong, and
    StoreError when the directory holds no store."""
    read_key(folder)
    finished = read_manifest(folder) is not None
    found = survey(folder)
    if found.broken:
        raise DamagedError("\n".join(found.broken.values()))
    rows = sum(len(groups(read_shard(folder, name))) for name in found.accounts)
    yield f"{folder}: {len(found.accounts)} shards, {rows} rows, all read{'' if finished else '; not finished'}"


def stats(folder: Where) -> Iterator[str]:
    """Counts over the rows, bytes by column, reasons of the questions that were set aside. Raises StoreError when the
    directory holds no store, or a damaged one."""
    read_key(folder)
    accounts = read_accounts(folder)
    sizes, answers, right, cut = Counter[str](), Counter[str](), Counter[str](), Counter[str]()
    rows, tokens, left_out = 0, 0, 0.0
    for name in accounts:
        file = pq.ParquetFile(pa.BufferReader(Folder(folder).read(name)))
        rows += file.metadata.num_rows
        sizes.update(_sizes(file.metadata))
        flat = file.read(columns=["answers"], use_threads=False)["answers"].combine_chunks().flatten()
        found = scores(flat)
        tokens += len(found.left_out)
        left_out += float(found.left_out.sum())
        kept = pa.RecordBatch.from_struct_array(flat).select(["source", "accuracy", "finish"]).to_pylist()
        answers.update(one["source"] for one in kept)
        right.update(one["source"] for one in kept if one["accuracy"])
        cut.update(one["source"] for one in kept if one["finish"] == "length")
    yield f"{rows} rows, {sum(answers.values())} answers, {tokens} answer tokens"
    for source, count in sorted(answers.items()):
        yield f"  {source}: {count} answers, {right[source] / count:.1%} right, {cut[source] / count:.1%} cut"
    if tokens:
        stored = sizes["top_gaps"] + sizes["top_roots"] + sizes["left_out_roots"]
        yield f"teacher scores: {stored / tokens:.1f} bytes per token, mass outside the top k {left_out / tokens:.2%}"
    for name, size in sizes.most_common():
        yield f"  {name}: {size} bytes"
    reasons = Counter(one.reason for account in accounts.values() for one in account.rejected.values())
    for reason, count in reasons.most_common():
        yield f"set aside, {count}: {reason}"


def _sizes(metadata: Any) -> Counter[str]:
    """Compressed bytes of each column, those of an answer by their own names."""
    sizes = Counter[str]()
    for group in range(metadata.num_row_groups):
        for index in range(metadata.num_columns):
            column = metadata.row_group(group).column(index)
            names = [name for name in column.path_in_schema.split(".") if name not in ("list", "element")]
            sizes[names[-1]] += column.total_compressed_size
    return sizes
