"""Cuts the dataset's rows into optimizer steps, and each step into micro-batches per worker."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from masters_ray import store
from masters_ray.errors import LearnerError
from masters_ray.learner.job import StagePlan
from masters_ray.method.schedule import Iteration

T = TypeVar("T")
Plans = Sequence[tuple[StagePlan, Iteration]]
Fresh = Callable[[int], pa.Table | None]
"""An online iteration's number → its fresh rows; blocks until they arrive. None when they do not come in time."""
_STAGE = 2**40
"""Orders rows across stages: the key of a row is stage · _STAGE + position."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """An optimizer step and its rows. Equal on every worker."""

    plan: StagePlan
    number: int
    """Counts from 1."""
    online: bool = False
    table: pa.Table
    """Rows of the step, ordered by position."""
    note: str = ""
    """Message for the user when the rows are not the planned ones; empty otherwise."""

    @cached_property
    def tokens(self) -> list[int]:
        """Sequence tokens of each row."""
        return store.sequence_tokens(self.table)

    @cached_property
    def answer_tokens(self) -> int:
        """Answer tokens of all rows."""
        return store.answer_tokens(self.table)

    @property
    def ages(self) -> list[int]:
        """Staleness of each fresh row (version ≥ 0): optimizer steps by which the version that wrote it is behind."""
        return [self.number - 1 - version for version in self.table["version"].to_pylist() if version >= 0]


def steps(
    batches: Iterator[pa.Table], plans: Plans, skip: int, fresh: Fresh = lambda _: None, max_staleness: int = 0
) -> Iterator[Step]:
    """Yields the planned iterations after number ``skip``, with the stored rows of ``batches``; online iterations use
    their fresh rows instead.

    Drops fresh rows that are more than ``max_staleness`` steps stale; an online iteration without fresh rows uses its
    stored rows, if it has any. Raises LearnerError when rows are missing or not ordered by stage and position.
    """
    for (plan, iteration), table in zip(plans, _stored(batches, plans), strict=True):
        if iteration.number <= skip:
            continue
        note = ""
        if iteration.online:
            table, note = _or_fresh(table, fresh(iteration.number), iteration.number - 1 - max_staleness)
            note = note and f"iteration {iteration.number}: {note}"
        yield Step(plan=plan, number=iteration.number, online=iteration.online, table=table, note=note)


def _or_fresh(stored: pa.Table, came: pa.Table | None, oldest: int) -> tuple[pa.Table, str]:
    """Returns the rows to learn from, and the step's note. oldest: version whose rows may still be used."""
    reason = "its fresh answers did not come in time"
    if came is not None:
        young = came.filter(pc.greater_equal(came["version"], oldest)).select(store.SCHEMA.names)
        if len(young):
            late = len(came) - len(young)
            return young, f"{late} fresh groups are too old and left out" if late else ""
        reason = "none of its questions has a fresh group"
    remedy = f"it learns from {len(stored)} stored ones" if len(stored) else "none is stored, it is left out"
    return stored, f"{reason}; {remedy}"


def _stored(batches: Iterator[pa.Table], plans: Plans) -> Iterator[pa.Table]:
    """Yields the stored rows of each planned iteration."""
    pending, places, last = store.SCHEMA.empty_table(), np.empty(0, np.int64), -1
    taken: Counter[int] = Counter()
    for index, (plan, iteration) in enumerate(plans):
        parts = []
        while True:
            count = int(np.searchsorted(places, plan.stage * _STAGE + iteration.positions.stop))
            parts.append(pending.slice(0, count))
            pending, places = pending.slice(count), places[count:]
            if len(pending) or (batch := next(batches, None)) is None:
                break
            pending = batch.select(store.SCHEMA.names)
            places = pending["stage"].to_numpy().astype(np.int64) * _STAGE + pending["position"].to_numpy()
            for place in places[np.diff(places, prepend=last) <= 0].tolist():
                raise LearnerError(f"rows came out of order at stage {place // _STAGE}, position {place % _STAGE}")
            last = int(places.max(initial=last))
        taken[plan.stage] += sum(map(len, parts))
        is_last = index + 1 == len(plans) or plans[index + 1][0].stage != plan.stage
        if is_last and (found := taken[plan.stage]) != plan.rows:
            raise LearnerError(
                f"stage {plan.stage}: expected {plan.rows} rows in the dataset, found {found}; the stores changed"
            )
        yield pa.concat_tables(parts)


def prefetch(items: Iterator[T]) -> Iterator[T]:
    """Yields the same items, computing each in a thread while the caller works on the item before it."""
    nothing: Any = object()
    with ThreadPoolExecutor(1, thread_name_prefix="prefetch") as thread:
        coming: Future[T] = thread.submit(next, items, nothing)
        while (item := coming.result()) is not nothing:
            coming = thread.submit(next, items, nothing)
            yield item


def micro_batches(tokens: Sequence[int], workers: int, budget: int) -> list[list[list[int]]]:
    """Packs groups into rounds of one micro-batch per worker: ``result[round][worker]`` are ascending group indices.

    tokens: sequence tokens of each group. A micro-batch holds at most ``budget`` tokens, or a single longer group.
    Longest-first packing determines the number of rounds. Micro-batches of similar length share a round, so that
    workers wait little for each other. With fewer groups than workers some micro-batches are empty.

    Example: ``micro_batches([7, 5, 5, 3], workers=2, budget=10)`` is ``[[[0, 3], [1, 2]]]``.
    """
    if not tokens:
        return []
    longest_first = sorted(range(len(tokens)), key=lambda index: -tokens[index])
    rounds = max(1, -(-sum(min(one, budget) for one in tokens) // (workers * budget)))
    while True:
        bins: list[list[int]] = [[] for _ in range(workers * rounds)]
        loads = [0] * len(bins)
        for index in longest_first:
            least = loads.index(min(loads))
            bins[least].append(index)
            loads[least] += tokens[index]
        if all(load <= budget or len(one) == 1 for one, load in zip(bins, loads, strict=True)):
            break
        rounds += 1
    alike = [one for _, one in sorted((-load, sorted(one)) for one, load in zip(bins, loads, strict=True))]
    return [alike[start : start + workers] for start in range(0, len(alike), workers)]
