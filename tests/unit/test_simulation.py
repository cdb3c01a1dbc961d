from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from masters_ray.errors import ConfigError
from masters_ray.simulation import Call, Pool, Setup, simulate, spread

exactly = pytest.approx


def call(
    pool: str = "student",
    seconds_per_call: float = 1.0,
    seconds_per_question: float = 0.5,
    method: str = "answer",
) -> Call:
    return Call(pool=pool, method=method, seconds_per_call=seconds_per_call, seconds_per_question=seconds_per_question)


BASE = Setup(
    iterations=10,
    online=(5,),
    groups_per_step=4,
    batch_rows=4,
    max_staleness=0,
    max_wait_seconds=math.inf,
    calls=(call(),),
    pools={"student": Pool(replicas=1)},
    learner_seconds=2.0,
    publish_seconds=0.5,
    load_seconds=0.25,
    start_seconds=4.0,
)
"""A batch takes 1 s + 4 · 0.5 s = 3 s, a step 2 s, weights 0.5 s to publish and 0.25 s to load, the start 4 s."""
INSTANT = dataclasses.replace(BASE, publish_seconds=0.0, load_seconds=0.0, start_seconds=0.0)
"""The same when weights and start take no time."""


def changed(base: Setup = BASE, **changes: Any) -> Setup:
    return dataclasses.replace(base, **changes)


def test_without_online_iterations_only_the_start_and_the_learner_take_time() -> None:
    """start 4 + 10 · 2 s"""
    found = simulate(changed(online=()))
    assert (found.wall_seconds, found.waited_seconds) == (24.0, 0.0)
    assert found.learner_utilisation == exactly(20 / 24)
    assert (found.fresh, found.stored, found.syncs, found.mean_age, found.largest_age) == (0, 0, 0, None, None)
    assert found.pool_utilisation == {"student": 0.0}


def test_an_on_policy_iteration_takes_all_its_parts_one_after_the_other() -> None:
    """start 4 + four steps 8 + publish 0.5 + load 0.25 + batch 3 + six steps 12 = 27.75 s"""
    found = simulate(BASE)
    assert found.wall_seconds == exactly(27.75)
    assert found.waited_seconds == exactly(3.25)
    assert found.learner_utilisation == exactly(20 / 27.75)
    assert found.pool_utilisation == {"student": exactly(3.25 / 27.75)}
    assert (found.fresh, found.stored, found.syncs, found.mean_age, found.largest_age) == (1, 0, 1, 0.0, 0)


@pytest.mark.parametrize(
    ("max_staleness", "wall", "waited", "syncs"),
    [
        pytest.param(1, 25.75, 1.25, 1, id="version 3 is out at 10.5, groups at 13.75, the learner comes at 12.5"),
        pytest.param(3, 24.5, 0.0, 1, id="version 1 is out at 6.5, groups at 9.75: only publishing is left"),
        pytest.param(4, 24.0, 0.0, 0, id="version 0 need not be published: 4 + 10 · 2"),
        pytest.param(9, 24.0, 0.0, 0, id="nothing is older than version 0"),
    ],
)
def test_staleness_hides_rollouts_behind_learning(max_staleness: int, wall: float, waited: float, syncs: int) -> None:
    found = simulate(changed(max_staleness=max_staleness))
    assert found.wall_seconds == exactly(wall)
    assert found.waited_seconds == exactly(waited)
    assert (found.syncs, found.largest_age) == (syncs, min(max_staleness, 4))


def test_ages_are_as_large_as_staleness_allows_and_no_older_than_the_run() -> None:
    """Iterations 1, 3, 10 have versions 0, 0, 7: ages 0, 2, 2."""
    found = simulate(changed(online=(1, 3, 10), max_staleness=2))
    assert (found.mean_age, found.largest_age, found.syncs) == (exactly(4 / 3), 2, 1)


def test_each_version_is_published_once() -> None:
    """10 online iterations, one step behind: versions 0, 0, 1, …, 8."""
    assert simulate(changed(online=spread(10, 1.0), max_staleness=1)).syncs == 8


@pytest.mark.parametrize(
    ("groups", "replicas", "at_once", "seconds"),
    [
        pytest.param(8, 1, 3, 6.0, id="two calls of 3 s share a replica"),
        pytest.param(8, 1, 1, 6.0, id="one after the other takes as long"),
        pytest.param(8, 2, 3, 3.0, id="two replicas halve it"),
        pytest.param(6, 1, 3, 5.0, id="3 s and 2 s: the short one ends at 4 s, then the long one is alone"),
        pytest.param(12, 2, 1, 6.0, id="three calls on two replicas of one place"),
        pytest.param(12, 2, 3, 6.0, id="three calls on two replicas: two share one"),
        pytest.param(4, 9, 3, 3.0, id="one batch uses one replica"),
    ],
)
def test_calls_on_a_replica_share_it(groups: int, replicas: int, at_once: int, seconds: float) -> None:
    pools = {"student": Pool(replicas=replicas, calls_at_once=at_once)}
    found = simulate(changed(INSTANT, groups_per_step=groups, pools=pools))
    assert found.waited_seconds == exactly(seconds)


def test_a_call_that_comes_later_slows_the_one_that_runs() -> None:
    """Teacher's answer 1 s with one place, then student's score 4 s: A is with the student alone from 1 s, with B from
    2 s, when it has 3 s left: A ends at 8 s. B, three quarters done then and alone, has 1 s left: 9 s."""
    calls = (call("teacher", 1.0, 0.0), call("student", 4.0, 0.0, "score"))
    pools = {"teacher": Pool(replicas=1, calls_at_once=1), "student": Pool(replicas=1, calls_at_once=2)}
    found = simulate(changed(INSTANT, groups_per_step=8, calls=calls, pools=pools))
    assert found.waited_seconds == exactly(9.0)
    assert found.pool_utilisation == {"teacher": exactly(2 / 29), "student": exactly(8 / 29)}


def test_batches_wait_for_a_place_in_turn() -> None:
    """One place each, teacher's answer 1 s, student's score 2 s: A is done at 3 s, B at 5 s, C at 7 s."""
    calls = (call("teacher", 1.0, 0.0), call("student", 2.0, 0.0, "score"))
    pools = {name: Pool(replicas=1, calls_at_once=1) for name in ("teacher", "student")}
    assert simulate(changed(INSTANT, groups_per_step=12, calls=calls, pools=pools)).waited_seconds == exactly(7.0)


def test_no_more_batches_are_begun_than_there_are_places() -> None:
    """Student's answer 3 s, teacher's score 1 s, student's verdict 3 s, one place each: A and B are begun. The student
    has A 0 to 3, B to 6, A to 9, B to 12; only when A is done, at 9, C comes: student 12 to 15, teacher to 16, student
    to 19. Begun at once it would have been with the student from 6 to 9, and all would end at 18."""
    calls = (call("student", 3.0, 0.0), call("teacher", 1.0, 0.0, "score"), call("student", 3.0, 0.0, "judge"))
    pools = {name: Pool(replicas=1, calls_at_once=1) for name in ("teacher", "student")}
    assert simulate(changed(INSTANT, groups_per_step=12, calls=calls, pools=pools)).waited_seconds == exactly(19.0)


def test_every_replica_of_the_student_loads_before_its_first_call_and_no_other_pool_does() -> None:
    """Two batches on two replicas: 0.25 + 3. On one: 0.25 + 6, the second call waits for the weights as well. A teacher
    that answers alone: 3."""
    two = changed(groups_per_step=8, pools={"student": Pool(replicas=2)})
    assert simulate(two).waited_seconds == exactly(3.25)
    assert simulate(changed(groups_per_step=8)).waited_seconds == exactly(6.25)
    teacher = changed(calls=(call("teacher"),), pools={"teacher": Pool(replicas=1), "student": Pool(replicas=1)})
    assert simulate(teacher).waited_seconds == exactly(3.0)


@pytest.mark.parametrize(
    ("cores", "wall", "waited", "busy"),
    [
        pytest.param(None, 5.0, 1.0, 3 / 5, id="all at full speed: max(2, 3) + 2"),
        pytest.param(3, 5.0, 1.0, 3 / 5, id="a core for each is the same"),
        pytest.param(2, 6.0, 1.0, 4 / 6, id="at 2/3: the step ends at 3 with 1 s of each call left, then a core each"),
        pytest.param(1, 10.0, 2.0, 8 / 10, id="at 1/3: the step ends at 6, two calls at 1/2 end at 8"),
    ],
)
def test_learner_and_replicas_share_cores(cores: int | None, wall: float, waited: float, busy: float) -> None:
    """A step of 2 s beside two calls of 3 s, then a step alone."""
    pools = {"student": Pool(replicas=2)}
    setup = changed(INSTANT, iterations=2, online=(2,), max_staleness=1, groups_per_step=8, pools=pools, cores=cores)
    found = simulate(setup)
    assert (found.wall_seconds, found.waited_seconds) == (exactly(wall), exactly(waited))
    assert found.pool_utilisation == {"student": exactly(busy)}
    assert found.learner_utilisation == exactly((wall - waited) / wall)


def test_publishing_and_loading_use_a_core_too() -> None:
    """One core: start 4, then steps 2 + 2, publish 0.5, load 0.25, calls 3, all one after the other."""
    assert simulate(changed(iterations=2, online=(2,), cores=1)).wall_seconds == exactly(4 + 2 + 0.5 + 0.25 + 3 + 2)


def test_the_learner_waits_no_longer_than_it_may() -> None:
    """start 4 + steps 8 + publish 0.5 + wait 1 + steps 12"""
    found = simulate(changed(max_wait_seconds=1.0))
    assert (found.wall_seconds, found.waited_seconds) == (exactly(25.5), exactly(1.0))
    assert (found.fresh, found.stored, found.mean_age) == (0, 1, None)
    in_the_last_moment = simulate(changed(max_wait_seconds=3.25))
    assert (in_the_last_moment.fresh, in_the_last_moment.wall_seconds) == (1, exactly(27.75))


def test_a_late_iteration_is_finished_and_one_that_was_passed_is_left_out() -> None:
    """Steps of 1 s, groups in 4.5 s, waiting 1 s at most. 2 is made from 0 to 4.5; the learner leaves it at 2, 3 at 4.
    So 3 is not begun, 12 is made from 5, when version 3 is there, to 9.5, and the learner comes to it at 5 + 8 = 13."""
    setup = changed(
        INSTANT,
        iterations=12,
        online=(2, 3, 12),
        max_staleness=8,
        max_wait_seconds=1.0,
        learner_seconds=1.0,
        calls=(call("student", 4.5, 0.0),),
    )
    found = simulate(setup)
    assert (found.wall_seconds, found.waited_seconds) == (exactly(14.0), exactly(2.0))
    assert (found.fresh, found.stored, found.mean_age) == (1, 2, 8.0)
    assert found.pool_utilisation == {"student": exactly(9 / 14)}


@pytest.mark.parametrize(
    ("max_staleness", "wall", "waited"),
    [
        pytest.param(0, 29.25, 4.75, id="4 + 8 + publish 0.5 + wake 1.5 + load 0.25 + 3 + 12"),
        pytest.param(4, 28.5, 4.5, id="version 0 saves publishing and loading and hides nothing"),
    ],
)
def test_colocated_engines_and_learner_take_turns(max_staleness: int, wall: float, waited: float) -> None:
    found = simulate(changed(max_staleness=max_staleness, colocated=True, wake_seconds=1.5))
    assert (found.wall_seconds, found.waited_seconds) == (exactly(wall), exactly(waited))
    assert found.pool_utilisation == {"student": exactly((waited - 1.5) / wall)}


def test_colocated_calls_stand_still_while_the_learner_works() -> None:
    """Waiting 2.5 s, of which 1.5 s wake: iteration 5's 3 s get on by 1 s in its own turn and by 1 s in that of 8."""
    setup = changed(online=(5, 8), max_staleness=9, max_wait_seconds=2.5, colocated=True, wake_seconds=1.5)
    found = simulate(setup)
    assert (found.wall_seconds, found.stored) == (exactly(4 + 20 + 2 * 2.5), 2)
    assert found.pool_utilisation == {"student": exactly(2 / 29)}
    never_awake = simulate(changed(setup, wake_seconds=9.0))
    assert (never_awake.wall_seconds, never_awake.stored) == (exactly(29.0), 2)


def test_twenty_thousand_iterations_add_up() -> None:
    found = simulate(changed(iterations=20_000, online=spread(20_000, 0.05), max_staleness=8))
    assert (found.fresh, found.syncs, found.wall_seconds) == (1000, 1000, exactly(4 + 40_000 + 1000 * 0.5))


def test_all_that_is_wrong_with_a_setup_is_said_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        changed(
            iterations=0,
            online=(5, 3),
            max_staleness=-1,
            learner_seconds=0.0,
            publish_seconds=math.inf,
            max_wait_seconds=math.nan,
            cores=0,
            calls=(call("judge", -1.0),),
            pools={"student": Pool(replicas=0)},
        )
    said = [complaint.where.removeprefix("simulation: ") for complaint in caught.value.complaints]
    assert said == [
        "iterations",
        "max_staleness",
        "learner_seconds",
        "publish_seconds",
        "max_wait_seconds",
        "cores",
        "online",
        "judge.answer",
        "judge.answer",
        "pools.student",
    ]
    assert "ascending numbers from 1 to 0, each once, found (5, 3). Sort them" in str(caught.value)
    with pytest.raises(ConfigError, match=r"calls: expected at least one with online iterations, found none"):
        changed(calls=())
