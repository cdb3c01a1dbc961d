"""Describes and verifies a store for ``masters-ray store inspect|verify``."""

import json
from collections import Counter
from collections.abc import Iterator

from masters_ray.errors import DamagedError
from masters_ray.store.folder import Where
from masters_ray.store.reading import read_shard
from masters_ray.store.rows import groups
from masters_ray.store.shards import read_accounts, read_key, read_manifest, survey


def inspect(folder: Where) -> Iterator[str]:
    """Yields lines on the store's progress, the reasons of questions set aside, and its key. Raises StoreError when the
    directory holds no store."""
    key, accounts, manifest = read_key(folder), read_accounts(folder), read_manifest(folder)
    rows = sum(account.rows for account in accounts.values())
    reasons = Counter(one.reason for account in accounts.values() for one in account.rejected.values())
    yield f"{folder}: {'finished' if manifest else 'not finished'}"
    held = f"{rows} rows + {reasons.total()} set aside, in {len(accounts)} shards"
    yield f"{rows + reasons.total()} questions = {held}"
    for reason, count in reasons.most_common():
        yield f"set aside, {count}: {reason}"
    for name, value in key.items():
        yield f"  {name}: {json.dumps(value, ensure_ascii=False)}"


def verify(folder: Where) -> Iterator[str]:
    """Reads key, manifest, digests, accounts and every row; yields lines with counts of the rows. Raises DamagedError,
    which lists every broken file, and StoreError when the directory holds no store."""
    read_key(folder)
    finished = read_manifest(folder) is not None
    found = survey(folder)
    if found.broken:
        raise DamagedError("\n".join(found.broken.values()))
    rows, tokens, left_out = 0, 0, 0.0
    answers, right, cut = Counter[str](), Counter[str](), Counter[str]()
    for row in (row for name in found.accounts for row in groups(read_shard(folder, name))):
        rows += 1
        for one in row.answers:
            source = one.judged.answer.source
            answers[source] += 1
            right[source] += one.judged.accuracy or 0
            cut[source] += one.judged.answer.finish == "length"
            tokens += len(one.teacher.left_out)
            left_out += float(one.teacher.left_out.sum())
    yield f"{folder}: {len(found.accounts)} shards, {rows} rows, all read{'' if finished else '; not finished'}"
    for name, count in sorted(answers.items()):
        yield f"  {name}: {count} answers, {right[name] / count:.1%} right, {cut[name] / count:.1%} cut"
    if tokens:
        yield f"  {tokens} answer tokens, mass outside the teacher's top k {left_out / tokens:.2%}"
