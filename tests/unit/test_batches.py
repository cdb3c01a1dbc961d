import queue
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from masters_ray.config import Learner
from masters_ray.errors import LearnerError
from masters_ray.learner.batches import Plans, Step, micro_batches, prefetch, steps
from masters_ray.learner.job import StagePlan
from masters_ray.learner.loop import learning_rate
from masters_ray.records import RolloutGroup
from tests.builders import group, iterations, scored, table_of
from tests.tensors import packed

PLAN = StagePlan(stage=0, ratio=0.2, rows=5)
PLANS = [(PLAN, one) for one in iterations((5,), 4)]
ONLINE = [(PLAN, one) for one in iterations((5,), 4, online_fraction=1)]


def rows(count: int = 5) -> list[RolloutGroup]:
    return [group([scored([5] * (index + 1)), scored([6, 1])], position=index) for index in range(count)]


def planned(groups: list[RolloutGroup] | None = None, plans: Plans = PLANS, size: int = 3, skip: int = 0) -> list[Step]:
    """Of groups that come ``size`` at a time."""
    whole = table_of(groups or rows())
    tables = (whole.slice(start, size) for start in range(0, len(whole), size))
    return list(steps(tables, plans, skip))


def positions(step: Step) -> Any:
    return step.table["position"].to_pylist()


@pytest.mark.parametrize("size", [1, 3, 100])
def test_rows_are_cut_into_steps_whatever_the_size_of_the_batches(size: int) -> None:
    found = planned(size=size)
    assert [(step.number, positions(step)) for step in found] == [(1, [0, 1, 2, 3]), (2, [4])]
    assert [token for step in found for token in step.tokens] == [len(packed([row]).input_ids) for row in rows()]
    assert [step.number for step in planned(size=size, skip=1)] == [2], "steps that were taken are passed over"


def test_the_learning_rate_rises_and_stays() -> None:
    settings = Learner(learning_rate=1.0, warmup_steps=4)
    assert [learning_rate(settings, step) for step in (1, 2, 5, 100)] == [0.2, 0.4, 1.0, 1.0]


def test_missing_and_disordered_rows_stop_the_learner() -> None:
    with pytest.raises(LearnerError, match="stage 0: expected 5 rows in the dataset, found 4"):
        planned(rows(4))
    with pytest.raises(LearnerError, match="out of order at stage 0, position 1"):
        planned(rows(3)[::-1])


def test_which_questions_a_step_has_does_not_depend_on_those_that_were_set_aside() -> None:
    there = [row for row in rows() if row.position not in (1, 4)]
    first, second = planned(there, [(replace(PLAN, rows=3), one) for _, one in PLANS])
    assert (positions(first), positions(second)) == ([0, 2, 3], [])


def fresh(number: int, *versions: int) -> pa.Table:
    """Rows of iteration ``number`` of PLANS, one for each version of its writer."""
    made = []
    for row, version in zip(rows()[4 * (number - 1) :], versions, strict=False):
        answers = [replace(one, behaviour_logprobs=one.reference_logprobs - 1) for one in row.answers]
        made.append(replace(row, version=version, answers=tuple(answers)))
    return table_of(made)


@pytest.mark.parametrize(
    ("came", "max_staleness", "rows_and_ages", "note"),
    [
        (fresh(2, 1), 0, ([4], [0]), ""),
        (fresh(2, 0), 1, ([4], [1]), ""),
        (fresh(2, 0), 0, ([4], []), "it has no fresh groups; it learns from 1 stored ones"),
        (pa.concat_tables([fresh(1, 0), fresh(2, 1)]), 0, ([4], [0]), "1 fresh groups are too old and left out"),
        (None, 0, ([4], []), "its fresh answers did not come in time; it learns from 1 stored ones"),
    ],
)
def test_an_online_iteration_has_its_fresh_rows_that_are_young_enough_or_what_is_stored_and_says_so(
    came: pa.Table | None, max_staleness: int, rows_and_ages: tuple[list[int], list[int]], note: str
) -> None:
    _, step = steps(iter([table_of(rows())]), ONLINE, 0, {2: came}.get, max_staleness)
    assert (positions(step), step.ages) == rows_and_ages
    assert step.note == (note and f"iteration 2: {note}")


def test_items_are_made_one_ahead_on_another_thread_and_its_error_is_raised_here() -> None:
    made: queue.SimpleQueue[int] = queue.SimpleQueue()

    def items() -> Iterator[int]:
        for place in range(2):
            made.put(threading.get_ident())
            yield place
        raise LearnerError("torn row")

    coming = prefetch(items())
    assert next(coming) == 0
    threads = {made.get(timeout=5) for _ in range(2)}  # the second item is made before it is asked for
    assert threading.get_ident() not in threads
    assert next(coming) == 1
    with pytest.raises(LearnerError, match="torn row"):
        next(coming)


def test_micro_batches_within_a_budget_of_ten() -> None:
    assert micro_batches([7, 5, 5, 3], 2, budget=10) == [[[0, 3], [1, 2]]]
    assert micro_batches([20, 1, 1], 1, budget=10) == [[[0]], [[1, 2]]], "above the budget: alone"
    assert micro_batches([3, 4], 3, budget=10) == [[[1], [0], []]], "fewer groups than workers"
    assert micro_batches([], 3, budget=10) == []


@given(st.lists(st.integers(1, 9), max_size=40), st.integers(1, 5), st.integers(1, 12))
def test_every_group_stands_in_one_micro_batch_within_the_budget(tokens: list[int], workers: int, budget: int) -> None:
    rounds = micro_batches(tokens, workers, budget)
    assert all(len(one) == workers for one in rounds)
    batches = [batch for one in rounds for batch in one]
    assert sorted(index for batch in batches for index in batch) == list(range(len(tokens)))
    assert all(batch == sorted(batch) for batch in batches)
    assert all(sum(tokens[index] for index in batch) <= budget or len(batch) == 1 for batch in batches)
