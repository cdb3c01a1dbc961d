"""Calls of one method that follow one another are made at the same time."""

from __future__ import annotations

import pytest

from masters_ray.simulation import Call, Pool, simulate
from tests.unit.test_simulation import INSTANT, call, changed, exactly

EACH_ALONE = {"teacher": Pool(replicas=1, calls_at_once=1), "student": Pool(replicas=1, calls_at_once=1)}
ANSWERS = (call("teacher", 5.0, 0.0), call("student", 3.0, 0.0))
"""Of both models, 5 s and 3 s."""
BOTH = changed(INSTANT, calls=ANSWERS, pools=EACH_ALONE)
"""One batch: its answers are the only round. Ten steps take 20 s."""


def test_calls_of_one_method_that_follow_one_another_are_a_round() -> None:
    verdict, score = call("judge", method="judge"), call("teacher", method="score")
    pools = EACH_ALONE | {"judge": Pool(replicas=1)}
    setup = changed(BOTH, pools=pools, calls=(*ANSWERS, verdict, score, *ANSWERS))
    assert setup.rounds == [ANSWERS, (verdict,), (score,), ANSWERS]
    assert changed(BOTH, online=(), calls=()).rounds == []


@pytest.mark.parametrize("calls", [ANSWERS, ANSWERS[::-1]])
def test_a_round_on_two_pools_takes_as_long_as_its_longer_call(calls: tuple[Call, ...]) -> None:
    found = simulate(changed(BOTH, calls=calls))
    assert (found.wall_seconds, found.waited_seconds) == (exactly(25.0), exactly(5.0))
    assert found.pool_utilisation == {"teacher": exactly(5 / 25), "student": exactly(3 / 25)}


@pytest.mark.parametrize(
    ("replicas", "at_once", "seconds"),
    [
        pytest.param(1, 3, 8.0, id="at half speed 3 s end at 6 s; then the other is alone for 2 s"),
        pytest.param(1, 1, 8.0, id="5 s, then 3 s"),
        pytest.param(2, 1, 5.0, id="a replica for each"),
    ],
)
def test_a_round_on_one_replica_takes_the_sum_of_its_calls(replicas: int, at_once: int, seconds: float) -> None:
    pools = {"student": Pool(replicas=replicas, calls_at_once=at_once)}
    calls = (call("student", 5.0, 0.0), call("student", 3.0, 0.0))
    found = simulate(changed(INSTANT, calls=calls, pools=pools))
    assert found.waited_seconds == exactly(seconds)
    assert found.pool_utilisation == {"student": exactly(8 / replicas / (20 + seconds))}


@pytest.mark.parametrize(
    ("at_once", "seconds"),
    [
        pytest.param(4, 14.0, id="at 1/4 the short ones end at 8, at 1/2 the long ones at 12: scores to 13 and 14"),
        pytest.param(1, 13.0, id="A 0 to 2 and 2 to 6, its score to 7; B to 8 and to 12, its score to 13"),
    ],
)
def test_calls_of_a_round_share_a_replica_with_those_of_other_batches(at_once: int, seconds: float) -> None:
    """A and B: answers of 2 s and 4 s on the student's replica, then the teacher's score of 1 s in its one place."""
    calls = (call("student", 2.0, 0.0), call("student", 4.0, 0.0), call("teacher", 1.0, 0.0, "score"))
    pools = EACH_ALONE | {"student": Pool(replicas=1, calls_at_once=at_once)}
    found = simulate(changed(INSTANT, groups_per_step=8, calls=calls, pools=pools))
    assert found.waited_seconds == exactly(seconds)


@pytest.mark.parametrize(
    ("cores", "waited", "teacher", "student"),
    [
        pytest.param(None, 5.0, 5.0, 3.0, id="each at full speed"),
        pytest.param(2.0, 5.0, 5.0, 3.0, id="a core for each is the same"),
        pytest.param(1.5, 6.0, 6.0, 4.0, id="at 3/4: the student ends at 4 with 2 s of the teacher left"),
        pytest.param(1.0, 8.0, 8.0, 6.0, id="at 1/2: the student ends at 6 with 2 s of the teacher left: the sum"),
    ],
)
def test_calls_of_a_round_share_cores(cores: float | None, waited: float, teacher: float, student: float) -> None:
    found = simulate(changed(BOTH, cores=cores))
    assert found.waited_seconds == exactly(waited)
    wall = 20 + waited
    assert found.pool_utilisation == {"teacher": exactly(teacher / wall), "student": exactly(student / wall)}


@pytest.mark.parametrize(
    ("after", "seconds"),
    [
        pytest.param((call("student", 2.0, 0.0, "score"),), 7.0, id="5 + 2, though the student is free at 3"),
        pytest.param(
            (call("teacher", 1.0, 0.0, "score"), call("student", 2.0, 0.0, "score")),
            7.0,
            id="5 + 2, the longer of each round",
        ),
        pytest.param(
            (call("student", 1.0, 0.0, "judge"), call("teacher", 4.0, 0.0, "score")),
            10.0,
            id="5 + 1 + 4, two rounds of one call",
        ),
        pytest.param(
            (call("student", 1.0, 0.0, "judge"), call("teacher", 4.0, 0.0), call("student", 2.0, 0.0)),
            10.0,
            id="5 + 1 + 4, a method that comes again is a round of its own",
        ),
    ],
)
def test_the_next_round_waits_for_the_slower_call(after: tuple[Call, ...], seconds: float) -> None:
    assert simulate(changed(BOTH, calls=(*ANSWERS, *after))).waited_seconds == exactly(seconds)


def test_batches_are_in_different_rounds() -> None:
    """One place each; answers of 2 s and 1 s, then the student's score of 1 s. A: teacher 0 to 2, student 0 to 1, score
    2 to 3. B: student 1 to 2, teacher 2 to 4, score 4 to 5."""
    calls = (call("teacher", 2.0, 0.0), call("student", 1.0, 0.0), call("student", 1.0, 0.0, "score"))
    found = simulate(changed(BOTH, groups_per_step=8, calls=calls))
    assert found.waited_seconds == exactly(5.0)
    assert found.pool_utilisation == {"teacher": exactly(4 / 25), "student": exactly(4 / 25)}


def test_groups_are_there_when_all_calls_of_the_last_round_are_done() -> None:
    """The learner comes at 8 s; the student is done at 11 s, the teacher at 13 s."""
    in_time, late = (simulate(changed(BOTH, max_wait_seconds=seconds)) for seconds in (5.0, 4.0))
    assert (in_time.fresh, in_time.stored, in_time.wall_seconds) == (1, 0, exactly(25.0))
    assert (late.fresh, late.stored, late.wall_seconds) == (0, 1, exactly(24.0))
    assert late.pool_utilisation == {"teacher": exactly(5 / 24), "student": exactly(3 / 24)}


@pytest.mark.parametrize(
    ("calls", "seconds"),
    [
        pytest.param(ANSWERS, 5.0, id="max(5, 1.5 + 3): the teacher answers while the student loads"),
        pytest.param((ANSWERS[1], ANSWERS[1]), 7.5, id="1.5 + 3 + 3: both wait for the same weights"),
        pytest.param((call("teacher", 4.0, 0.0), ANSWERS[1]), 4.5, id="max(4, 1.5 + 3)"),
    ],
)
def test_only_the_students_calls_of_a_round_wait_for_its_weights(calls: tuple[Call, ...], seconds: float) -> None:
    assert simulate(changed(BOTH, load_seconds=1.5, calls=calls)).waited_seconds == exactly(seconds)
