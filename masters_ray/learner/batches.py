"""Which rows of the dataset make which optimizer step, and which of them a micro-batch of which worker."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from masters_ray import store
from masters_ray.errors import LearnerError
from masters_ray.learner.job import StagePlan
from masters_ray.method.schedule import Iteration

T = TypeVar("T")
Plans = Sequence[tuple[StagePlan, Iteration]]
Fresh = Callable[[int], pa.Table | None]
"""An online iteration's number → its fresh rows, waited for; None when they do not come."""
_STAGE = 2**40
"""Stages' rows follow one another: a row stands at stage · _STAGE + position."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """An optimizer step as all workers see it."""

    plan: StagePlan
    number: int
    """Counts from 1."""
    online: bool = False
    table: pa.Table
    """Its rows, in the order of their positions."""
    rounds: list[list[list[int]]]
    """[round][worker] → indices of rows; empty when there is nothing to learn from."""
    note: str = ""
    """What a person should know about where its rows come from."""

    @classmethod
    def of(cls, plan: StagePlan, number: int, table: pa.Table, workers: int, budget: int, **more: Any) -> Step:
        """With micro-batches of at most ``budget`` tokens for so many workers."""
        rounds = micro_batches(store.sequence_tokens(table), workers, budget)
        return cls(plan=plan, number=number, table=table, rounds=rounds, **more)

    @cached_property
    def tokens(self) -> list[int]:
        """Sequence tokens of each row."""
        return store.sequence_tokens(self.table)

    @cached_property
    def answer_tokens(self) -> int:
        """Of all rows."""
        return store.answer_tokens(self.table)

    @property
    def ages(self) -> list[int]:
        """Of its fresh rows: optimizer steps by which the writing student is behind."""
        return ages(self.table, self.number)

    @property
    def capacity(self) -> int:
        """Tokens that the workers could have computed while each round's longest micro-batch was."""
        loads = ([sum(self.tokens[index] for index in one) for one in workers] for workers in self.rounds)
        return sum(max(workers) * len(workers) for workers in loads)


def ages(table: pa.Table, number: int) -> list[int]:
    """Of the rows that were written while the student learned: optimizer steps by which their writer is behind
    iteration ``number``."""
    return [number - 1 - version for version in table["version"].to_pylist() if version >= 0]


def steps(
    batches: Iterator[pa.Table],
    plans: Plans,
    workers: int,
    budget: int,
    skip: int,
    fresh: Fresh = lambda _: None,
    max_staleness: int = 0,
) -> Iterator[Step]:
    """The stored rows of ``batches``, cut into the planned iterations; online ones have their fresh rows instead. The
    first ``skip`` are passed over.

    Fresh rows whose writer is more than ``max_staleness`` steps behind are left out; an iteration without fresh rows
    keeps its stored ones, if there are any. Raises LearnerError when rows are missing, or do not come in the order of
    their stages and positions.
    """
    for (plan, iteration), table in zip(plans, _stored(batches, plans), strict=True):
        if iteration.number <= skip:
            continue
        note = ""
        if iteration.online:
            table, note = _or_fresh(table, iteration.number, fresh(iteration.number), max_staleness)
        yield Step.of(plan, iteration.number, table, workers, budget, online=iteration.online, note=note)


def _or_fresh(stored: pa.Table, number: int, came: pa.Table | None, max_staleness: int) -> tuple[pa.Table, str]:
    """The rows to learn from, and what to say of them."""
    reason = "its fresh answers did not come in time"
    if came is not None:
        came = came.select(store.SCHEMA.names)
        young = came.filter(pa.array([age <= max_staleness for age in ages(came, number)], pa.bool_()))
        if late := len(came) - len(young):
            reason = f"{late} fresh groups are too old and left out"
        if len(young):
            return young, f"iteration {number}: {reason}" if late else ""
        reason = "none of its questions has a fresh group"
    remedy = f"it learns from {len(stored)} stored ones" if len(stored) else "none is stored, it is left out"
    return stored, f"iteration {number}: {reason}; {remedy}"


def _stored(batches: Iterator[pa.Table], plans: Plans) -> Iterator[pa.Table]:
    """The stored rows of each planned iteration."""
    pending, places = store.SCHEMA.empty_table(), np.empty(0, np.int64)
    last = -1
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
            for place in places.tolist():
                if place <= last:
                    raise LearnerError(f"rows came out of order at stage {place // _STAGE}, position {place % _STAGE}")
                last = place
        taken[plan.stage] += sum(map(len, parts))
        is_last = index + 1 == len(plans) or plans[index + 1][0].stage != plan.stage
        if is_last and (found := taken[plan.stage]) != plan.rows:
            raise LearnerError(
                f"stage {plan.stage}: expected {plan.rows} rows in the dataset, found {found}; the stores changed"
            )
        yield pa.concat_tables(parts)


def prefetch(items: Iterator[T], halts: Callable[[T], bool] = lambda _: False) -> Iterator[T]:
    """The same items, each made on a thread while the one before it is worked on; after one that ``halts`` the next is
    made when it is asked for."""
    nothing: Any = object()
    with ThreadPoolExecutor(1, thread_name_prefix="prefetch") as thread:
        coming: Future[T] = thread.submit(next, items, nothing)
        while (item := coming.result()) is not nothing:
            if halt := halts(item):
                yield item
            coming = thread.submit(next, items, nothing)
            if not halt:
                yield item


def micro_batches(tokens: Sequence[int], workers: int, budget: int) -> list[list[list[int]]]:
    """Rounds of one micro-batch per worker: ``result[round][worker]`` are indices of groups, in their order.

    tokens: what each group takes in a sequence. A micro-batch holds at most ``budget`` tokens, or one group that alone
    has more. There are as few rounds as longest-first packing finds; the micro-batches of a round are the ones most
    alike, so that workers wait little for each other. With fewer groups than workers some micro-batches are empty.

    Example: ``micro_batches([7, 5, 5, 3], workers=2, budget=10)`` is ``[[[0, 3], [1, 2]]]``.
    """
    if not tokens:
        return []
    rounds = max(1, -(-sum(min(one, budget) for one in tokens) // (workers * budget)))
    while True:
        bins = _longest_first(tokens, workers * rounds)
        if all(len(one) == 1 or sum(tokens[index] for index in one) <= budget for one in bins if one):
            break
        rounds += 1
    bins.sort(key=lambda one: (-sum(tokens[index] for index in one), one))
    return [bins[start : start + workers] for start in range(0, len(bins), workers)]


def _longest_first(tokens: Sequence[int], count: int) -> list[list[int]]:
    """``count`` bins, each group put where there is least so far, the longest first."""
    bins: list[list[int]] = [[] for _ in range(count)]
    loads = [0] * count
    for index in sorted(range(len(tokens)), key=lambda index: -tokens[index]):
        least = loads.index(min(loads))
        bins[least].append(index)
        loads[least] += tokens[index]
    return [sorted(one) for one in bins]
