"""What lies in a store, for people: ``masters-ray store inspect|verify|stats``."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from masters_ray.errors import DamagedError
from masters_ray.store.account import read_accounts
from masters_ray.store.folder import Folder, Where
from masters_ray.store.manifest import read_key, read_manifest
from masters_ray.store.rows import scores
from masters_ray.store.survey import survey

_SCORES = ("top_gaps", "top_roots", "left_out_roots")


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
    found = survey(folder, decoded=True)
    if found.broken:
        raise DamagedError("\n".join(found.broken.values()))
    rows = sum(account.rows for account in found.accounts.values())
    yield f"{folder}: {len(found.accounts)} shards, {rows} rows, all read{'' if finished else '; not finished'}"


def stats(folder: Where) -> Iterator[str]:
    """Counts over the rows, bytes by column, reasons of the questions that were set aside. Raises StoreError when the
    directory holds no store, or a damaged one."""
    read_key(folder)
    accounts = read_accounts(folder)
    reasons = Counter(one.reason for account in accounts.values() for one in account.rejected.values())
    sizes: Counter[str] = Counter()
    answers, rows, tokens, left_out = Counter[str](), 0, 0, 0.0
    right, cut = Counter[str](), Counter[str]()
    for name in accounts:
        content = pq.ParquetFile(pa.BufferReader(Folder(folder).read(name)))
        rows += content.metadata.num_rows
        sizes.update(_sizes(content.metadata))
        flat = content.read(columns=["answers"], use_threads=False)["answers"].combine_chunks().flatten()
        found = scores(flat)
        tokens += len(found.left_out)
        left_out += float(found.left_out.sum())
        sources = flat.field("source").to_pylist()
        answers.update(sources)
        right.update(source for source, one in zip(sources, flat.field("accuracy").to_pylist(), strict=True) if one)
        cut.update(
            source for source, one in zip(sources, flat.field("finish").to_pylist(), strict=True) if one == "length"
        )
    yield f"{rows} rows, {sum(answers.values())} answers, {tokens} answer tokens"
    for source, count in sorted(answers.items()):
        yield f"  {source}: {count} answers, {right[source] / count:.1%} right, {cut[source] / count:.1%} cut"
    if tokens:
        stored = sum(sizes[name] for name in _SCORES)
        yield f"teacher scores: {stored / tokens:.1f} bytes per token, mass outside the top k {left_out / tokens:.2%}"
    for name, size in sizes.most_common():
        yield f"  {name}: {size} bytes"
    for reason, count in reasons.most_common():
        yield f"set aside, {count}: {reason}"


def _sizes(metadata: Any) -> dict[str, int]:
    """Compressed bytes of each column, those of an answer by their own names."""
    sizes: Counter[str] = Counter()
    for group in range(metadata.num_row_groups):
        for index in range(metadata.num_columns):
            column = metadata.row_group(group).column(index)
            names = [name for name in column.path_in_schema.split(".") if name not in ("list", "element")]
            sizes[names[-1]] += column.total_compressed_size
    return dict(sizes)
