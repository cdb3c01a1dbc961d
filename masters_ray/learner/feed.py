"""The dataset's rows as packed micro-batches of one worker, made one ahead of the one that is trained on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import pyarrow as pa

from masters_ray import store
from masters_ray.batching import micro_batches
from masters_ray.errors import LearnerError
from masters_ray.learner.job import StagePlan
from masters_ray.packing import PackedBatch
from masters_ray.records import RolloutGroup

T = TypeVar("T")

Pack = Callable[[Sequence[RolloutGroup]], PackedBatch]


@dataclass(frozen=True, kw_only=True)
class Step:
    """An optimizer step as all workers see it."""

    number: int
    """Counts from 1."""
    plan: StagePlan
    table: pa.Table
    """Its rows, in the dataset's order."""
    tokens: list[int]
    """Sequence tokens of each row."""
    answer_tokens: int
    """Of all its rows."""
    rounds: list[list[list[int]]]
    """[round][worker] → indices of rows."""

    @property
    def capacity(self) -> int:
        """Tokens that the workers could have computed while each round's longest micro-batch was."""
        loads = ([sum(self.tokens[index] for index in one) for one in workers] for workers in self.rounds)
        return sum(max(workers) * len(workers) for workers in loads)


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """One worker's part of a round."""

    step: Step
    indices: list[int]
    """Rows of the step."""
    groups: list[RolloutGroup]
    batch: PackedBatch
    filler: bool
    """A row of another worker with weight 0: a rank with nothing left still takes part in the collectives."""


def steps(
    batches: Iterator[pa.Table], plans: Sequence[tuple[StagePlan, int]], workers: int, budget: int, skip: int
) -> Iterator[Step]:
    """The rows of ``batches``, cut into steps of the planned sizes; the first ``skip`` are passed over.

    Raises LearnerError when rows are missing, or do not come in the order of their stages and positions.
    """
    pending = store.SCHEMA.empty_table()
    expected = -1
    for number, (plan, size) in enumerate(plans, 1):
        while len(pending) < size:
            try:
                pending = pa.concat_tables([pending, next(batches).select(store.SCHEMA.names)])
            except StopIteration:
                raise LearnerError(f"the dataset ended at step {number} of {len(plans)}; the stores changed") from None
        table, pending = pending.slice(0, size), pending.slice(size)
        for stage, position in zip(table["stage"].to_pylist(), table["position"].to_pylist(), strict=True):
            if (key := stage * 2**40 + position) <= expected:
                raise LearnerError(f"rows came out of order at stage {stage}, position {position}")
            expected = key
        if number > skip:
            tokens = store.sequence_tokens(table)
            rounds = micro_batches(tokens, workers, budget)
            answer_tokens = store.answer_tokens(table)
            yield Step(number=number, plan=plan, table=table, tokens=tokens, answer_tokens=answer_tokens, rounds=rounds)


def own_batches(steps: Iterable[Step], rank: int, pack: Pack) -> Iterator[MicroBatch]:
    """Worker ``rank``'s micro-batches of all steps."""
    for step in steps:
        for workers in step.rounds:
            indices = workers[rank] or workers[0][:1]
            groups = store.groups(step.table.take(indices))
            yield MicroBatch(step=step, indices=indices, groups=groups, batch=pack(groups), filler=not workers[rank])


def ahead(items: Iterator[T]) -> Iterator[T]:
    """The same items, each made on a thread while the one before it is worked on."""
    nothing: Any = object()
    with ThreadPoolExecutor(1, thread_name_prefix="feed") as thread:
        coming: Future[T] = thread.submit(next, items, nothing)
        while (item := coming.result()) is not nothing:
            coming = thread.submit(next, items, nothing)
            yield item
