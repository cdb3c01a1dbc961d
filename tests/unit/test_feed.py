from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import pyarrow as pa
import pytest

from masters_ray import store
from masters_ray.errors import LearnerError
from masters_ray.learner.feed import Part, Step, ahead, before, own_parts, steps
from masters_ray.learner.job import StagePlan
from masters_ray.packing import PackedBatch, pack, sequence_tokens, unreadable
from masters_ray.records import RolloutGroup, ScoredAnswer
from tests.builders import group, iterations, scored
from tests.unit.test_packing import prompt

PLAN = StagePlan(stage=0, ratio=0.2, rows=5)
PLANS = [(PLAN, one) for one in iterations((5,), 4)]


def rows(count: int = 5) -> list[RolloutGroup]:
    return [group([scored([5] * (index + 1)), scored([6, 1])], position=index) for index in range(count)]


def tables(groups: list[RolloutGroup], size: int) -> Iterator[pa.Table]:
    whole = store.table_of(groups)
    return (whole.slice(start, size) for start in range(0, len(groups), size))


def planned(workers: int = 2, budget: int = 50, skip: int = 0, size: int = 3) -> list[Step]:
    return list(steps(tables(rows(), size), PLANS, workers, budget, skip))


def test_rows_are_cut_into_steps_whatever_the_size_of_the_batches() -> None:
    for size in (1, 3, 100):
        found = planned(size=size)
        assert [step.number for step in found] == [1, 2]
        assert [step.table["position"].to_pylist() for step in found] == [[0, 1, 2, 3], [4]]
        assert [token for step in found for token in step.tokens] == [sequence_tokens(row) for row in rows()]


def test_steps_that_were_taken_are_passed_over() -> None:
    assert [step.number for step in planned(skip=1)] == [2]


def test_missing_and_disordered_rows_stop_the_learner() -> None:
    with pytest.raises(LearnerError, match="stage 0: expected 5 rows in the dataset, found 4"):
        list(steps(tables(rows(4), 2), PLANS, 1, 50, 0))
    with pytest.raises(LearnerError, match="out of order at stage 0, position 1"):
        list(steps(tables(list(reversed(rows(3))), 3), PLANS, 1, 50, 0))


def test_which_questions_a_step_has_does_not_depend_on_those_that_were_set_aside() -> None:
    plan = replace(PLAN, rows=3)
    there = [row for row in rows() if row.position not in (1, 4)]
    found = list(steps(tables(there, 2), [(plan, one) for _, one in PLANS], 1, 50, 0))
    assert [step.table["position"].to_pylist() for step in found] == [[0, 2, 3], []]
    assert found[1].rounds == [], "a step without rows is told, not taken"
    [part] = own_parts(found[1:], 0, packed)
    assert part == Part(step=found[1], micro_batches=[], unreadable={})


def behaved(answer: ScoredAnswer) -> ScoredAnswer:
    return replace(answer, behaviour_logprobs=answer.reference_logprobs - 1)


def fresh(number: int, versions: Sequence[int]) -> pa.Table:
    """Rows of iteration ``number`` of PLANS, one for each version of its writer."""
    made = [
        replace(row, version=version, answers=tuple(map(behaved, row.answers)))
        for row, version in zip(rows()[4 * (number - 1) :], versions, strict=False)
    ]
    return store.table_of(made)


ONLINE = [(PLAN, one) for one in iterations((5,), 4, online_fraction=1)]


def test_an_online_iteration_has_its_fresh_rows_and_knows_their_ages() -> None:
    came = {1: fresh(1, [0, 0]), 2: fresh(2, [1])}
    first, second = steps(tables(rows(), 3), ONLINE, 1, 50, 0, fresh=came.get, max_staleness=1)
    assert first.table["position"].to_pylist() == [0, 1] and first.ages == [0, 0]
    assert second.table["position"].to_pylist() == [4] and second.ages == [0]
    assert [one.version for one in store.groups(second.table)] == [1]
    assert first.note == second.note == ""


def test_rows_whose_writer_is_too_old_are_not_learned_from() -> None:
    [_, second] = steps(
        tables(rows(), 3), ONLINE, 1, 50, 0, fresh={1: fresh(1, [0]), 2: fresh(2, [0])}.get, max_staleness=0
    )
    assert second.table["position"].to_pylist() == [4] and second.ages == [], "the stored row is there instead"
    assert "none of its questions has a fresh group; it learns from 1 stored ones" in second.note
    mixed = {1: fresh(1, [0]), 2: pa.concat_tables([fresh(1, [0]), fresh(2, [1])])}
    [_, second] = steps(tables(rows(), 3), ONLINE, 1, 50, 0, fresh=mixed.get, max_staleness=0)
    assert second.table["position"].to_pylist() == [4]
    assert second.note == "iteration 2: 1 fresh groups are too old and left out"


def test_an_iteration_whose_answers_do_not_come_goes_on_with_what_is_stored_and_says_so() -> None:
    [first, second] = steps(tables(rows(), 3), ONLINE, 1, 50, 0, fresh=lambda _: None, max_staleness=0)
    assert first.table["position"].to_pylist() == [0, 1, 2, 3] and second.table["position"].to_pylist() == [4]
    assert first.note == "iteration 1: its fresh answers did not come in time; it learns from 4 stored ones"
    nothing = [(replace(PLAN, rows=0), one) for _, one in ONLINE]
    [first, _] = steps(iter([]), nothing, 1, 50, 0, fresh=lambda _: None, max_staleness=0)
    assert first.rounds == []
    assert first.note == "iteration 1: its fresh answers did not come in time; none is stored, it is left out"


def packed(groups: Sequence[RolloutGroup]) -> PackedBatch:
    return pack(groups, [prompt(row.prompt_tokens) for row in groups], pad_id=0)


def test_each_row_is_trained_on_by_one_worker_and_a_worker_without_rows_gets_a_filler() -> None:
    per_worker = [list(own_parts(planned(workers=3, budget=25), rank, packed)) for rank in range(3)]
    for number, size in ((1, 4), (2, 1)):
        parts = [parts[number - 1] for parts in per_worker]
        assert len({len(part.micro_batches) for part in parts}) == 1, "every worker takes part in every round"
        mine = [one for part in parts for one in part.micro_batches]
        taken = [index for one in mine if not one.filler for index in one.indices]
        assert sorted(taken) == list(range(size))
        assert [one.groups[0].position - 4 * (number - 1) for one in mine] == [one.indices[0] for one in mine]
    assert any(one.filler for parts in per_worker for part in parts for one in part.micro_batches)


def lacking(*positions: int) -> Callable[[Sequence[RolloutGroup]], PackedBatch]:
    """Packs all rows but these."""

    def pack_others(groups: Sequence[RolloutGroup]) -> PackedBatch:
        for row in groups:
            if row.position in positions:
                raise unreadable(row, "its picture is gone")
        return packed(groups)

    return pack_others


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_a_row_that_cannot_be_read_is_told_and_its_step_is_that_of_the_others(workers: int) -> None:
    there = [row for row in rows() if row.position != 2]
    plan = replace(PLAN, rows=4)
    [expected, _] = steps(tables(there, 3), [(plan, one) for _, one in PLANS], 1, 1000, 0)
    taken = []
    for rank in range(workers):
        part, _ = own_parts(planned(workers=workers, budget=25), rank, lacking(2))
        reasons = [(row.row, row.reason, row.kind) for row in part.unreadable.values()]
        assert reasons in ([], [("p2", "stage 0, position 2: its picture is gone", "learner")])
        without = part.without({2})
        assert without.step.table == expected.table and without.step.tokens == expected.tokens
        assert without.step.answer_tokens == expected.answer_tokens
        assert sorted(row for each in without.step.rounds for one in each for row in one) == [0, 1, 2]
        assert len(without.micro_batches) == len(without.step.rounds)
        own = [one for one in without.micro_batches if not one.filler]
        assert [[row.position for row in one.groups] for one in own] == [
            [expected.table["position"][index].as_py() for index in one.indices] for one in own
        ]
        taken += [index for one in own for index in one.indices]
    assert sorted(taken) == [0, 1, 2]


def test_a_worker_that_can_read_no_row_of_a_step_takes_part_with_one_of_an_earlier_step_or_says_so() -> None:
    first, second = own_parts(planned(workers=1), 0, lacking(4))
    assert list(second.unreadable) == [0] and [one.filler for one in second.micro_batches] == [True]
    assert second.micro_batches[0].groups == first.micro_batches[-1].groups
    assert len(second.without(second.unreadable).step.table) == 0
    first, second = own_parts(planned(workers=1), 0, lacking(0, 1, 2, 3))
    assert sorted(first.unreadable) == [0, 1, 2, 3] and first.micro_batches == []
    assert not second.unreadable and [one.filler for one in second.micro_batches] == [False]


def test_what_the_workers_could_have_computed_is_counted() -> None:
    (first, _) = planned(workers=2, budget=1000)
    loads = [sum(first.tokens[index] for index in worker) for worker in first.rounds[0]]
    assert first.capacity == 2 * max(loads)


def test_items_are_made_one_ahead_on_another_thread() -> None:
    made: list[tuple[int, int]] = []

    def items() -> Iterator[int]:
        for index in range(3):
            made.append((index, threading.get_ident()))
            yield index

    coming = ahead(items())
    assert next(coming) == 0
    deadline = time.monotonic() + 5
    while len(made) < 2 and time.monotonic() < deadline:
        time.sleep(0.001)
    assert [index for index, _ in made] == [0, 1]
    assert threading.get_ident() not in {thread for _, thread in made}
    assert list(coming) == [1, 2]


def test_what_may_not_be_made_ahead_is_made_when_it_is_asked_for() -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for index in range(4):
            made.append(index)
            yield index

    coming = ahead(items(), halts=lambda index: index == 1)
    assert [next(coming), next(coming)] == [0, 1]
    time.sleep(0.05)
    assert made == [0, 1]
    assert next(coming) == 2
    deadline = time.monotonic() + 5
    while len(made) < 4 and time.monotonic() < deadline:
        time.sleep(0.001)
    assert made == [0, 1, 2, 3]
    assert list(coming) == [3]


def test_an_online_iteration_is_waited_for_when_the_one_before_is_done_and_only_then() -> None:
    """Two workers, eight rows in steps of two: the last two are online."""
    plan = replace(PLAN, rows=8)
    plans = [(plan, replace(one, online=one.number > 2)) for one in iterations((8,), 2)]
    asked: list[int] = []

    def take(number: int) -> None:
        asked.append(number)

    coming = steps(tables(rows(8), 3), plans, 2, 25, 0, fresh=take, max_staleness=0)
    course = ahead(own_parts(coming, 0, packed), before({3, 4}))
    seen: dict[int, list[int]] = {}
    for part in course:
        time.sleep(0.02)
        seen[part.step.number] = list(asked)
    assert seen == {1: [], 2: [], 3: [3], 4: [3, 4]}


def test_a_step_without_rows_is_followed_by_an_online_iteration_as_well() -> None:
    [first, second] = planned()
    empty, taken = own_parts([replace(first, rounds=[]), second], 0, packed)
    assert before({2})(empty) and not before({3})(empty)
    assert not before({2})(taken)


def test_an_error_while_making_an_item_reaches_the_one_who_waits_for_it() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise LearnerError("torn row")

    coming = ahead(items())
    assert next(coming) == 1
    with pytest.raises(LearnerError, match="torn row"):
        next(coming)
