"""The dataset's rows as packed micro-batches of one worker, made one ahead of the one that is trained on."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from masters_ray import store
from masters_ray.batching import micro_batches
from masters_ray.errors import LearnerError, UnreadableRowError
from masters_ray.learner.job import StagePlan
from masters_ray.packing import PackedBatch
from masters_ray.records import Rejected, RolloutGroup
from masters_ray.schedule import Iteration

T = TypeVar("T")

Pack = Callable[[Sequence[RolloutGroup]], PackedBatch]
"""Raises UnreadableRowError for the first group that cannot be packed."""
Fresh = Callable[[int], pa.Table | None]
"""An online iteration's number → its fresh rows, waited for; None when they do not come."""
_STAGE = 2**40
"""Stages' rows follow one another: a row stands at stage · _STAGE + position."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """An optimizer step as all workers see it."""

    plan: StagePlan
    iteration: Iteration
    table: pa.Table
    """Its rows, in the order of their positions."""
    tokens: list[int]
    """Sequence tokens of each row."""
    answer_tokens: int
    """Of all its rows."""
    rounds: list[list[list[int]]]
    """[round][worker] → indices of rows; empty when there is nothing to learn from."""
    note: str = ""
    """What a person should know about where its rows come from."""

    @property
    def number(self) -> int:
        """Counts from 1."""
        return self.iteration.number

    @property
    def ages(self) -> list[int]:
        """Of its fresh rows: optimizer steps by which the writing student is behind."""
        return ages(self.table, self.number)

    @property
    def capacity(self) -> int:
        """Tokens that the workers could have computed while each round's longest micro-batch was."""
        loads = ([sum(self.tokens[index] for index in one) for one in workers] for workers in self.rounds)
        return sum(max(workers) * len(workers) for workers in loads)


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """One worker's part of a round."""

    indices: list[int]
    """Rows of the step."""
    groups: list[RolloutGroup]
    batch: PackedBatch
    filler: bool
    """Some row with weight 0: a rank with nothing left still takes part in the collectives."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """One worker's part of a step."""

    step: Step
    micro_batches: list[MicroBatch]
    """One a round; none when there is nothing that the worker can read."""
    unreadable: dict[int, Rejected]
    """Rows of the step that the worker was to read and cannot."""

    def without(self, rows: Collection[int]) -> Part:
        """The same as if the step did not have these rows; none of them is in a micro-batch, except in fillers."""
        step = self.step
        kept = [index for index in range(len(step.table)) if index not in rows]
        place = {index: number for number, index in enumerate(kept)}
        table = step.table.take(pa.array(kept, pa.int64()))
        step = replace(
            step,
            table=table,
            tokens=[step.tokens[index] for index in kept],
            answer_tokens=store.answer_tokens(table) if kept else 0,
            rounds=[[[place[index] for index in one if index in place] for one in each] for each in step.rounds],
        )
        made = [replace(one, indices=[place.get(index, 0) for index in one.indices]) for one in self.micro_batches]
        return Part(step=step, micro_batches=made, unreadable={})


def ages(table: pa.Table, number: int) -> list[int]:
    """Of the rows that were written while the student learned: optimizer steps by which their writer is behind
    iteration ``number``."""
    return [number - 1 - version for version in table["version"].to_pylist() if version >= 0]


def steps(
    batches: Iterator[pa.Table],
    plans: Sequence[tuple[StagePlan, Iteration]],
    workers: int,
    budget: int,
    skip: int,
    fresh: Fresh | None = None,
    max_staleness: int = 0,
) -> Iterator[Step]:
    """The stored rows of ``batches``, cut into the planned iterations; online ones have their fresh rows instead. The
    first ``skip`` are passed over.

    Fresh rows whose writer is more than ``max_staleness`` steps behind are left out; an iteration without fresh rows
    keeps its stored ones, if there are any. Raises LearnerError when rows are missing, or do not come in the order of
    their stages and positions.
    """
    stored = _Stored(batches)
    for index, (plan, iteration) in enumerate(plans):
        table = stored.up_to(plan.stage, iteration.positions.stop)
        if index + 1 == len(plans) or plans[index + 1][0].stage != plan.stage:
            stored.check(plan)
        if iteration.number <= skip:
            continue
        note = ""
        if iteration.online:
            table, note = _or_fresh(table, iteration, fresh(iteration.number) if fresh else None, max_staleness)
        tokens = store.sequence_tokens(table)
        yield Step(
            plan=plan,
            iteration=iteration,
            table=table,
            tokens=tokens,
            answer_tokens=store.answer_tokens(table),
            rounds=micro_batches(tokens, workers, budget) if tokens else [],
            note=note,
        )


def _or_fresh(
    stored: pa.Table, iteration: Iteration, came: pa.Table | None, max_staleness: int
) -> tuple[pa.Table, str]:
    """The rows to learn from, and what to say of them."""
    if came is None:
        return stored, f"iteration {iteration.number}: its fresh answers did not come in time; {_goes_on(stored)}"
    came = came.select(store.SCHEMA.names)
    young = [age <= max_staleness for age in ages(came, iteration.number)]
    kept = came.filter(pa.array(young, pa.bool_()))
    if len(kept):
        late = len(came) - len(kept)
        return kept, f"iteration {iteration.number}: {late} fresh groups are too old and left out" if late else ""
    return stored, f"iteration {iteration.number}: none of its questions has a fresh group; {_goes_on(stored)}"


def _goes_on(stored: pa.Table) -> str:
    return f"it learns from {len(stored)} stored ones" if len(stored) else "none is stored, it is left out"


class _Stored:
    """The dataset's rows in their order, taken stretch by stretch."""

    def __init__(self, batches: Iterator[pa.Table]) -> None:
        self._batches = batches
        self._pending = store.SCHEMA.empty_table()
        self._places = np.empty(0, np.int64)
        self._last = -1
        self._taken: dict[int, int] = {}

    def up_to(self, stage: int, stop: int) -> pa.Table:
        """The rows that follow, of this stage, before position ``stop``."""
        parts = [self._pending.slice(0, 0)]
        while True:
            count = int(np.searchsorted(self._places, stage * _STAGE + stop))
            parts.append(self._pending.slice(0, count))
            self._pending, self._places = self._pending.slice(count), self._places[count:]
            if len(self._pending) or not self._read():
                found = pa.concat_tables(parts)
                self._taken[stage] = self._taken.get(stage, 0) + len(found)
                return found

    def check(self, plan: StagePlan) -> None:
        """Raises LearnerError when the stage had not as many rows as its store says."""
        if (found := self._taken.get(plan.stage, 0)) != plan.rows:
            raise LearnerError(
                f"stage {plan.stage}: expected {plan.rows} rows in the dataset, found {found}; the stores changed"
            )

    def _read(self) -> bool:
        batch = next(self._batches, None)
        if batch is None:
            return False
        self._pending = batch.select(store.SCHEMA.names)
        stages = self._pending["stage"].to_numpy().astype(np.int64)
        self._places = stages * _STAGE + self._pending["position"].to_numpy()
        for place in self._places.tolist():
            if place <= self._last:
                raise LearnerError(f"rows came out of order at stage {place // _STAGE}, position {place % _STAGE}")
            self._last = place
        return True


def own_parts(steps: Iterable[Step], rank: int, pack: Pack) -> Iterator[Part]:
    """Worker ``rank``'s part of every step, all its micro-batches packed: how many rows a step has is known before
    anything is learned from it."""
    spare: MicroBatch | None = None
    for step in steps:
        unreadable: dict[int, Rejected] = {}
        made: list[MicroBatch] = []
        for workers in step.rounds:
            one = _packed(step, workers[rank], pack, unreadable)
            spare = one or spare
            if one is None and (found := _filler(step, workers[0], pack, unreadable) or spare) is not None:
                one = replace(found, filler=True)
            made += [one] if one is not None else []
        whole = len(made) == len(step.rounds)
        yield Part(step=step, micro_batches=made if whole else [], unreadable=unreadable)


def _packed(step: Step, indices: Sequence[int], pack: Pack, unreadable: dict[int, Rejected]) -> MicroBatch | None:
    """These rows of a step without those that cannot be read, which are noted; None when none is left."""
    left = list(indices)
    while left:
        groups = store.groups(step.table.take(left))
        try:
            return MicroBatch(indices=left, groups=groups, batch=pack(groups), filler=False)
        except UnreadableRowError as error:
            bad = left.pop([group.position for group in groups].index(error.position))
            reason = f"stage {error.stage}, position {error.position}: {error.reason}"
            unreadable[bad] = Rejected(row=error.row, reason=reason, kind="learner")
    return None


def _filler(step: Step, first: Sequence[int], pack: Pack, unreadable: Collection[int]) -> MicroBatch | None:
    """Any row of the step that can be read."""
    candidates = (index for index in dict.fromkeys([*first, *range(len(step.table))]) if index not in unreadable)
    return next((one for index in candidates if (one := _packed(step, [index], pack, {})) is not None), None)


def ahead(items: Iterator[T], halts: Callable[[T], bool] = lambda _: False) -> Iterator[T]:
    """The same items, each made on a thread while the one before it is worked on; after one that ``halts`` the next is
    made when it is asked for."""
    nothing: Any = object()
    with ThreadPoolExecutor(1, thread_name_prefix="feed") as thread:
        coming: Future[T] = thread.submit(next, items, nothing)
        while (item := coming.result()) is not nothing:
            if halt := halts(item):
                yield item
            coming = thread.submit(next, items, nothing)
            if not halt:
                yield item


def before(numbers: Collection[int]) -> Callable[[Part], bool]:
    """Whether a step is the last before one of these iterations."""
    return lambda part: part.step.number + 1 in numbers
