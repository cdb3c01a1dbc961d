"""Cuts the dataset's rows into optimizer steps, and each step into micro-batches per worker."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from masters_ray import store
from masters_ray.errors import LearnerError
from masters_ray.families import GroupLayout
from masters_ray.learner.job import StagePlan
from masters_ray.method.schedule import Iteration

T = TypeVar("T")
Plans = Sequence[tuple[StagePlan, Iteration]]
Fresh = Callable[[int], pa.Table | None]
"""An online iteration's number → its fresh rows; blocks until they arrive. None when they do not come in time."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """An optimizer step and its rows. Equal on every worker."""

    plan: StagePlan
    number: int
    online: bool = False
    table: pa.Table  # ordered by position
    note: str = ""  # for the user, when the rows are not the planned ones
    layout: GroupLayout = "prompt_once"

    @cached_property
    def tokens(self) -> list[int]:
        return store.sequence_tokens(self.table, self.layout)

    @property
    def ages(self) -> list[int]:
        """Staleness of each fresh row: optimizer steps by which the version that wrote it is behind."""
        return [self.number - 1 - version for version in self.table["version"].to_pylist() if version >= 0]


def steps(
    batches: Iterator[pa.Table],
    plans: Plans,
    skip: int,
    fresh: Fresh = lambda _: None,
    max_staleness: int = 0,
    layout: GroupLayout = "prompt_once",
) -> Iterator[Step]:
    """Yields the planned iterations after number ``skip``, with the stored rows of ``batches``. Online iterations use
    their fresh rows instead if some are at most ``max_staleness`` steps stale. Raises LearnerError when stored rows are
    missing or not ordered by stage and position."""
    for (plan, iteration), table in zip(plans, _stored(batches, plans), strict=True):
        number, note = iteration.number, ""
        if number <= skip:
            continue
        if iteration.online:
            came = fresh(number)
            groups = store.SCHEMA.empty_table() if came is None else came.select(store.SCHEMA.names)
            young = groups.filter(pc.greater_equal(groups["version"], number - 1 - max_staleness))
            if not len(young):
                reason = "its fresh answers did not come in time" if came is None else "it has no fresh groups"
                note = f"iteration {number}: {reason}; it learns from {len(table)} stored ones"
            elif late := len(groups) - len(young):
                note = f"iteration {number}: {late} fresh groups are too old and left out"
            table = young if len(young) else table
        yield Step(plan=plan, number=number, online=iteration.online, table=table, note=note, layout=layout)


def _stored(batches: Iterator[pa.Table], plans: Plans) -> Iterator[pa.Table]:
    coming = (
        (place, batch.slice(index, 1).select(store.SCHEMA.names))
        for batch in batches
        for index, place in enumerate(zip(batch["stage"].to_pylist(), batch["position"].to_pylist(), strict=True))
    )
    ahead, last = next(coming, None), (-1, -1)
    taken: Counter[int] = Counter()
    for index, (plan, iteration) in enumerate(plans):
        rows = [store.SCHEMA.empty_table()]
        while ahead is not None and ahead[0] < (plan.stage, iteration.positions.stop):
            place, row = ahead
            if place <= last:
                raise LearnerError(f"rows came out of order at stage {place[0]}, position {place[1]}")
            rows.append(row)
            last, ahead = place, next(coming, None)
        taken[plan.stage] += len(rows) - 1
        is_last = index + 1 == len(plans) or plans[index + 1][0].stage != plan.stage
        if is_last and (found := taken[plan.stage]) != plan.rows:
            raise LearnerError(
                f"stage {plan.stage}: expected {plan.rows} rows in the dataset, found {found}; the stores changed"
            )
        yield pa.concat_tables(rows)


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
