from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from masters_ray.errors import ConfigError, StoreError
from masters_ray.simulation import (
    Assumed,
    Call,
    Case,
    Pool,
    Rates,
    Row,
    Setup,
    lines,
    measured,
    paper,
    paper_lines,
    simulate,
    spread,
    sweep,
    table,
)

exactly = pytest.approx


def call(pool: str = "student", seconds_per_call: float = 1.0, seconds_per_question: float = 0.5) -> Call:
    return Call(
        pool=pool, method="answer", seconds_per_call=seconds_per_call, seconds_per_question=seconds_per_question
    )


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


def test_without_online_iterations_only_the_learner_takes_time() -> None:
    """10 · 2 s; engines are not started."""
    found = simulate(changed(online=()))
    assert (found.wall_seconds, found.learner_utilisation, found.waited_seconds) == (20.0, 1.0, 0.0)
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
    """Teacher 1 s with one place, then student 4 s: A is with the student alone from 1 s, with B from 2 s, when it has
    3 s left: A ends at 8 s. B, half done then and alone, has 1 s left: 9 s."""
    calls = (call("teacher", 1.0, 0.0), call("student", 4.0, 0.0))
    pools = {"teacher": Pool(replicas=1, calls_at_once=1), "student": Pool(replicas=1, calls_at_once=2)}
    found = simulate(changed(INSTANT, groups_per_step=8, calls=calls, pools=pools))
    assert found.waited_seconds == exactly(9.0)
    assert found.pool_utilisation == {"teacher": exactly(2 / 29), "student": exactly(8 / 29)}


def test_batches_wait_for_a_place_in_turn() -> None:
    """One place each, teacher 1 s, student 2 s: A is done at 3 s, B at 5 s, C at 7 s."""
    calls = (call("teacher", 1.0, 0.0), call("student", 2.0, 0.0))
    pools = {name: Pool(replicas=1, calls_at_once=1) for name in ("teacher", "student")}
    assert simulate(changed(INSTANT, groups_per_step=12, calls=calls, pools=pools)).waited_seconds == exactly(7.0)


def test_no_more_batches_are_begun_than_there_are_places() -> None:
    """Student 3 s, teacher 1 s, student 3 s, one place each: A and B are begun. The student has A 0 to 3, B to 6, A to
    9, B to 12; only when A is done, at 9, C comes: student 12 to 15, teacher to 16, student to 19. Begun at once it
    would have been with the student from 6 to 9, and all would end at 18."""
    calls = (call("student", 3.0, 0.0), call("teacher", 1.0, 0.0), call("student", 3.0, 0.0))
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


UNHURRIED = settings(deadline=None)
"""The first example of a busy machine may take long."""
COSTS = st.integers(0, 8).map(lambda eighths: eighths / 8)
"""Seconds."""


@st.composite
def runs(draw: st.DrawFn, most_calls: int = 1, **fixed: Any) -> Setup:
    """Dedicated engines; a batch makes so many calls at most."""
    count = draw(st.integers(1, most_calls))
    iterations = draw(st.integers(1, 12))
    made = tuple(call(draw(st.sampled_from(("teacher", "student"))), draw(COSTS), draw(COSTS)) for _ in range(count))
    pools = {
        name: Pool(replicas=draw(st.integers(1, 4)), calls_at_once=draw(st.integers(1, 3)))
        for name in ("teacher", "student")
    }
    values: dict[str, Any] = {
        "iterations": iterations,
        "online": tuple(sorted(draw(st.sets(st.integers(1, iterations))))),
        "groups_per_step": draw(st.integers(1, 9)),
        "batch_rows": draw(st.integers(1, 4)),
        "max_staleness": draw(st.integers(0, 5)),
        "max_wait_seconds": math.inf,
        "calls": made,
        "pools": pools,
        "learner_seconds": draw(COSTS) + 0.125,
        "publish_seconds": draw(COSTS),
        "load_seconds": draw(COSTS),
        "start_seconds": draw(COSTS),
    }
    return Setup(**(values | fixed))


def service_of(setup: Setup, pool: str) -> float:
    """Seconds of one iteration's calls of a pool, without loading."""
    full, rest = divmod(setup.groups_per_step, setup.batch_rows)
    sizes = [setup.batch_rows] * full + [rest] * (rest > 0)
    return sum(one.seconds(size) for one in setup.calls if one.pool == pool for size in sizes)


@UNHURRIED
@given(runs(4, load_seconds=0.0))
def test_replicas_work_exactly_as_long_as_they_are_asked_to(setup: Setup) -> None:
    found = simulate(setup)
    assert found.fresh == len(setup.online)
    for name, pool in setup.pools.items():
        busy = found.pool_utilisation[name] * found.wall_seconds * pool.replicas
        assert busy == exactly(len(setup.online) * service_of(setup, name))


@UNHURRIED
@given(runs(4, load_seconds=0.0, cores=1))
def test_a_single_core_does_everything_one_after_the_other(setup: Setup) -> None:
    found = simulate(setup)
    learner = setup.iterations * setup.learner_seconds + found.syncs * setup.publish_seconds
    calls = len(setup.online) * (service_of(setup, "teacher") + service_of(setup, "student"))
    assert found.wall_seconds == exactly((setup.start_seconds if setup.online else 0.0) + learner + calls)


@UNHURRIED
@given(runs(calls=(call(),), pools={"student": Pool(replicas=1)}))
def test_dedicated_engines_do_what_the_recurrence_says(setup: Setup) -> None:
    """Written out: groups of n are there making(n) after those before n and after version v(n); a step begins when the
    one before is published and its groups are there."""
    there = {0: setup.start_seconds if setup.online else 0.0}
    needed = {max(0, number - 1 - setup.max_staleness) for number in setup.online}
    now, made = there[0], there[0]
    for number in range(1, setup.iterations + 1):
        if number in setup.online:
            version = max(0, number - 1 - setup.max_staleness)
            made = max(made, there[version]) + service_of(setup, "student") + setup.load_seconds * (version > 0)
            now = max(now, made)
        now += setup.learner_seconds + setup.publish_seconds * (number in needed)
        there[number] = now
    assert simulate(setup).wall_seconds == exactly(now)


@UNHURRIED
@given(runs(), st.integers(1, 3))
def test_more_replicas_are_never_slower_on_dedicated_engines(setup: Setup, more: int) -> None:
    pools = {name: dataclasses.replace(pool, replicas=pool.replicas + more) for name, pool in setup.pools.items()}
    assert simulate(changed(setup, pools=pools)).wall_seconds <= simulate(setup).wall_seconds + 1e-9


@UNHURRIED
@given(runs())
def test_older_weights_are_never_slower_on_dedicated_engines(setup: Setup) -> None:
    older = changed(setup, max_staleness=setup.max_staleness + 1)
    assert simulate(older).wall_seconds <= simulate(setup).wall_seconds + 1e-9


@UNHURRIED
@given(runs(3, max_wait_seconds=0.5), st.sampled_from([None, 1, 2]), st.booleans())
def test_no_online_iteration_is_lost_and_waiting_is_bounded(setup: Setup, cores: int | None, colocated: bool) -> None:
    found = simulate(changed(setup, cores=cores, colocated=colocated, wake_seconds=0.25))
    assert found.fresh + found.stored == len(setup.online)
    assert found.waited_seconds <= 0.5 * len(setup.online) + 1e-9
    assert all(0 <= share <= 1 + 1e-9 for share in found.pool_utilisation.values())


# Sweeps and text


def test_a_sweep_runs_every_share_with_every_choice_of_replicas() -> None:
    """10 on-policy iterations of 10 s (batches of 3 s) with one replica or two."""
    base = changed(INSTANT, groups_per_step=8)
    cases = sweep(base, [0.0, 0.2], [{}, {"student": 2}])
    assert [(case.share, dict(case.replicas)) for case in cases] == [
        (0.0, {"student": 1}),
        (0.0, {"student": 2}),
        (0.2, {"student": 1}),
        (0.2, {"student": 2}),
    ]
    assert [case.outcome.wall_seconds for case in cases] == [20, 20, exactly(32), exactly(26)]
    with pytest.raises(ConfigError, match=r"replicas of judge: expected a pool that there is.*Pools: student"):
        sweep(base, [0.2], [{"judge": 2}])


def test_online_iterations_are_spread_as_a_run_spreads_them() -> None:
    assert spread(10, 0.2) == (3, 8)
    assert spread(3, 1.0) == (1, 2, 3)
    assert spread(3, 0.0) == ()


def test_runs_stand_in_columns() -> None:
    offline, online = simulate(changed(online=())), simulate(changed(max_staleness=1))
    cases = [
        Case(share=0.0, replicas={"student": 1}, outcome=offline),
        Case(share=0.1, replicas={"student": 1}, outcome=online),
    ]
    assert list(lines(cases)) == [
        "online  student    wall  slower  learner busy  waited  student busy  mean age  oldest  fresh  stored  syncs",
        "   0 %        1  20.0 s  1.00 ×         100 %   0.0 s           0 %         –       –      0       0      0",
        "  10 %        1  25.8 s  1.29 ×          78 %   1.2 s          13 %       1.0       1      1       0      1",
    ]
    with pytest.raises(ValueError, match="at least one run"):
        list(lines([]))


# Rates


def online_row(step: int, version: int, **changes: Any) -> dict[str, Any]:
    calls = {
        "teacher.answer": {"calls": 2, "questions": 32, "seconds": 8.0},
        "student.answer": {"calls": 2, "questions": 32, "seconds": 3.2},
        "judge.judge": {"calls": 0, "questions": 0, "seconds": 0.0},
    }
    return {
        "step": step,
        "version": version,
        "publish_seconds": 0.1 * step,
        "load_seconds": 0.2 * step,
        "calls": calls,
    } | changes


def write_run(folder: Path, online: list[dict[str, Any]], tail: str = "") -> Path:
    seconds = {1: 9.0, 2: 1.0, 3: 2.0, 4: 1.5, 5: 3.0}
    steps = [{"step": step, "online": False, "seconds": one, "waited": 0.5} for step, one in seconds.items()]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in steps) + tail)
    (folder / "online.jsonl").write_text("".join(json.dumps(one) + "\n" for one in online) + tail)
    (folder / "journal.json").write_text(json.dumps({"phases": {"start of the engines": 7.0, "learner": 30.0}}))
    return folder


ROWS = [online_row(2, 0), online_row(3, 1), online_row(5, 4)]


def test_rates_are_medians_and_seconds_per_question(tmp_path: Path) -> None:
    """Without the first step: 1, 2, 1.5, 3 s, of which 2, 3 and 5 were online. Versions above 0 took 0.3 and 0.5 s to
    publish, 0.6 and 1 to load. The learner's 30 s less steps 16.5, waiting 2.5 and publishing 1.0 leave 10. The teacher
    answered 96 questions in 24 s."""
    found = measured(write_run(tmp_path, ROWS, tail='{"step": 6, "sec'))
    assert found.learner_seconds == 1.75
    assert (found.offline_step_seconds, found.online_step_seconds) == (1.5, 2.0)
    assert (found.publish_seconds, found.load_seconds) == (exactly(0.4), exactly(0.8))
    assert found.start_seconds == exactly(10.0)
    assert [one.name for one in found.calls] == ["teacher.answer", "student.answer"]
    assert [one.seconds_per_call for one in found.calls] == [0.0, 0.0]
    assert [one.seconds_per_question for one in found.calls] == [exactly(0.25), exactly(0.1)]


@pytest.mark.parametrize(
    ("points", "seconds_per_call", "seconds_per_question"),
    [
        pytest.param([(1, 4, 3.0), (2, 16, 10.0)], 1.0, 0.5, id="1 + 4 · 0.5 and 1 + 8 · 0.5"),
        pytest.param([(1, 1, 1.0), (1, 3, 6.0)], 0.0, 1.9, id="never less than 0 a call: (1·1 + 3·6) / (1 + 9)"),
        pytest.param([(1, 1, 4.0), (1, 3, 2.0)], 3.0, 0.0, id="never less than 0 a question: their mean"),
        pytest.param([(1, 4, 2.0), (1, 4, 4.0), (1, 4, 6.0)], 0.0, 1.0, id="one size: 12 s for 12 questions"),
    ],
)
def test_batches_of_several_sizes_tell_what_a_call_costs(
    tmp_path: Path, points: list[tuple[int, int, float]], seconds_per_call: float, seconds_per_question: float
) -> None:
    rows = [
        online_row(step, step - 1, calls={"a.b": {"calls": calls, "questions": questions, "seconds": seconds}})
        for step, (calls, questions, seconds) in enumerate(points, 2)
    ]
    (found,) = measured(write_run(tmp_path, rows)).calls
    assert (found.seconds_per_call, found.seconds_per_question) == (
        exactly(seconds_per_call),
        exactly(seconds_per_question),
    )


def test_a_step_that_was_taken_again_counts_once(tmp_path: Path) -> None:
    rows = [online_row(2, 0), online_row(3, 1, publish_seconds=99.0), online_row(3, 1), online_row(5, 4)]
    assert measured(write_run(tmp_path, rows)) == measured(write_run(tmp_path, ROWS))


def test_the_start_is_not_known_while_the_learner_works_and_never_below_zero(tmp_path: Path) -> None:
    run = write_run(tmp_path, ROWS)
    (run / "journal.json").write_text('{"phases": {}}')
    assert measured(run).start_seconds is None
    (run / "journal.json").write_text('{"phases": {"learner": 3.0}}')
    assert measured(run).start_seconds == 0.0


def lose(name: str) -> Callable[[Path], object]:
    return lambda run: (run / name).unlink()


def put(name: str, content: str) -> Callable[[Path], object]:
    return lambda run: (run / name).write_text(content)


def without(key: str) -> str:
    return json.dumps({name: value for name, value in online_row(2, 1).items() if name != key})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lose("online.jsonl"), r"online.jsonl: expected this file, found none. Measure a run with rollout.online_frac"),
        (lose("metrics.jsonl"), r"metrics.jsonl: expected this file, found none. Measure a run that writes it, or"),
        (lose("journal.json"), r"journal.json: expected this file, found none"),
        (put("online.jsonl", ""), r"online.jsonl: expected a line for each online iteration, found none. Measure"),
        (put("online.jsonl", without("load_seconds")), r"line 1.load_seconds: expected this field, found only step, v"),
        (put("online.jsonl", without("calls")), r"online.jsonl: line 1.calls: expected this field"),
        (put("online.jsonl", '{"step": 2, "version": 1, "publish_seconds": 0, "load_seconds": 0, "calls": {}}'),
         r"line 1.calls: expected a call with questions, found none"),
        (put("online.jsonl", 'x\n{"step": 2}'), r"online.jsonl: line 1: expected a JSON object, found Expecting value"),
        (put("online.jsonl", "[2]\n"), r"online.jsonl: line 1: expected a JSON object, found \[2\]"),
        (put("metrics.jsonl", '{"step": 1, "seconds": 1, "waited": 0}\n'), r"two optimizer steps.*found 1. Let the"),
        (put("metrics.jsonl", '{"step": 1}\n{"step": 2, "seconds": "x"}'), r"line 2.seconds: expected a number.*'x'"),
        (put("metrics.jsonl", '{"step": 1, "seconds": 1}\n{"step": 2, "seconds": 1}'), r"line 1.waited: expected this"),
        (put("journal.json", "{}"), r"journal.json: phases: expected this field, found only an empty object"),
        (put("journal.json", '{"phases": 3}'), r"journal.json: phases: expected an object, found 3"),
    ],
)  # fmt: skip
def test_what_a_run_lacks_is_named(tmp_path: Path, damage: Callable[[Path], object], message: str) -> None:
    run = write_run(tmp_path, ROWS)
    damage(run)
    with pytest.raises(StoreError, match=message):
        measured(run)


def test_a_call_without_a_pool_is_refused(tmp_path: Path) -> None:
    calls = {"answer": {"calls": 1, "questions": 1, "seconds": 1}}
    with pytest.raises(StoreError, match=r"line 1.calls: expected names such as teacher.answer, found answer"):
        measured(write_run(tmp_path, [online_row(2, 1, calls=calls)]))


def test_rates_come_back_from_their_file(tmp_path: Path) -> None:
    rates = measured(write_run(tmp_path, ROWS))
    rates.save(tmp_path / "rates.json")
    assert Rates.load(tmp_path / "rates.json") == rates
    unknown = dataclasses.replace(rates, start_seconds=None, online_step_seconds=None)
    unknown.save(tmp_path / "rates.json")
    assert Rates.load(tmp_path / "rates.json") == unknown
    assert sorted(path.name for path in tmp_path.glob("rates.json*")) == ["rates.json"]


BY_HAND: dict[str, Any] = {
    "learner_seconds": 2,
    "offline_step_seconds": None,
    "online_step_seconds": None,
    "publish_seconds": 0.5,
    "load_seconds": 0.25,
    "start_seconds": 4,
    "calls": {"student.answer": {"seconds_per_call": 1, "seconds_per_question": 0.5}},
}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learner_seconds": None}, "rates.json: learner_seconds: expected a number of 0 or more, found None. Mend"),
        ({"publish_seconds": -1}, "rates.json: publish_seconds: expected a number of 0 or more, found -1"),
        ({"load_seconds": True}, "rates.json: load_seconds: expected a number of 0 or more, found True"),
        ({"start_seconds": math.nan}, "rates.json: start_seconds: expected a number of 0 or more, found nan"),
        ({"calls": {}}, "rates.json: calls: expected at least one call, found none"),
        ({"calls": {"a.b": {}}}, "rates.json: calls.a.b.seconds_per_call: expected this field"),
        ({"calls": {"a.b": 1}}, "rates.json: calls.a.b: expected an object, found 1"),
        ({"calls": {"ab": {"seconds_per_call": 1, "seconds_per_question": 1}}}, "rates.json: calls: expected names"),
    ],
)
def test_wrong_rates_are_named_by_file_and_key(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    file = tmp_path / "rates.json"
    file.write_text(json.dumps(BY_HAND | changes))
    with pytest.raises(StoreError, match=re.escape(message)):
        Rates.load(file)


def test_a_missing_key_of_the_rates_is_named(tmp_path: Path) -> None:
    file = tmp_path / "rates.json"
    file.write_text(json.dumps({key: value for key, value in BY_HAND.items() if key != "start_seconds"}))
    with pytest.raises(StoreError, match=r"rates.json: start_seconds: expected this field, found only learner_seconds"):
        Rates.load(file)
    file.write_text("{")
    with pytest.raises(StoreError, match=r"rates.json: expected a JSON object, found Expecting"):
        Rates.load(file)


def test_rates_by_hand_make_a_run(tmp_path: Path) -> None:
    file = tmp_path / "rates.json"
    file.write_text(json.dumps(BY_HAND))
    setup = Rates.load(file).setup(
        iterations=10,
        online=(5,),
        groups_per_step=4,
        batch_rows=4,
        max_staleness=0,
        max_wait_seconds=math.inf,
        pools={"student": Pool(replicas=1)},
    )
    assert setup == BASE


# The paper's figures


@pytest.fixture(scope="module")
def rows() -> dict[float, Row]:
    return {row.share: row for row in table()}


def test_without_online_iterations_all_columns_say_the_papers_49_hours(rows: dict[float, Row]) -> None:
    row = rows[0.0]
    assert row.paper_hours == row.literal_hours == 49.0
    assert row.dedicated_gpus == 0
    assert row.dedicated_hours == pytest.approx(49.0, rel=1e-3)
    assert row.colocated_hours == pytest.approx(49.0, rel=1e-3)


def test_the_papers_rate_taken_literally(rows: dict[float, Row]) -> None:
    """10 %: 150,000 samples at 0.5 h per 1,000 are 75 h, and 0.9 · 49 h = 44.1 h. 100 %: 750 h, the paper's 31 days."""
    assert rows[0.1].literal_hours == exactly(119.1)
    assert rows[1.0].literal_hours / 24 == pytest.approx(31, abs=0.5)
    assert [rows[share].paper_hours for share in (0.05, 0.2, 0.5)] == [73.0, 148.0, None]


def test_dedicated_replicas_are_sized_to_the_learner(rows: dict[float, Row]) -> None:
    sized = [row for row in rows.values() if row.dedicated_gpus is not None]
    assert len(sized) == len(paper.SHARES)
    assert all(row.dedicated_hours <= 1.1 * 49 + 1e-6 for row in sized)
    counts = [row.dedicated_gpus or 0 for row in sized]
    assert counts == sorted(counts)


def test_turns_on_the_same_gpus_cost_at_least_the_rollouts(rows: dict[float, Row]) -> None:
    """At F.9's rates 4 + 4 answers to everything take half of 24 h and half of 14 h on the 256 GPUs."""
    for row in rows.values():
        assert row.colocated_hours >= 49 + row.share * (12 + 7) - 0.01


def whole_run(assumed: Assumed, share: float, gpus: int, **changes: Any) -> Setup:
    """Call by call, as ``paper.table`` shortens it."""
    teachers, students = paper.divided(assumed, gpus)
    setup = Setup(
        iterations=assumed.iterations,
        online=spread(assumed.iterations, share),
        groups_per_step=assumed.groups_per_step,
        batch_rows=assumed.batch_rows,
        max_staleness=assumed.max_staleness,
        max_wait_seconds=math.inf,
        calls=(
            call("teacher", 0.0, assumed.teacher_gpu_seconds / assumed.teacher_gpus),
            call("student", 0.0, assumed.student_gpu_seconds),
        ),
        pools={"teacher": Pool(replicas=teachers), "student": Pool(replicas=students)},
        learner_seconds=assumed.learner_seconds,
        publish_seconds=assumed.handover_seconds,
        load_seconds=assumed.handover_seconds,
        start_seconds=0.0,
    )
    return dataclasses.replace(setup, **changes)


def test_one_call_for_all_of_an_iterations_calls_gives_the_same_hours_and_one_gpu_less_would_not_do() -> None:
    """586 iterations of 2,560 questions in 128 batches, with weights that take ten seconds each way."""
    assumed = Assumed(groups_per_step=2560, batch_rows=20, link_bytes_per_second=1.6e9, max_staleness=2)
    assert (assumed.iterations, assumed.handover_seconds) == (586, exactly(10.0))
    found = {row.share: row for row in table(assumed)}
    for share in (0.1, 0.5):
        row = found[share]
        gpus = row.dedicated_gpus or 0
        assert simulate(whole_run(assumed, share, gpus)).wall_seconds / 3600 == exactly(row.dedicated_hours)
        assert simulate(whole_run(assumed, share, gpus - 1)).wall_seconds / 3600 > 1.1 * 49
        turns = whole_run(assumed, share, 256, max_staleness=0, colocated=True, wake_seconds=assumed.wake_seconds)
        assert simulate(turns).wall_seconds / 3600 == exactly(row.colocated_hours)


def test_where_handing_over_costs_too_much_no_number_of_gpus_is_enough() -> None:
    """100 s to publish are a third of a step of 301 s: too much for every iteration, not for each twentieth."""
    found = {row.share: row for row in table(Assumed(groups_per_step=2560, batch_rows=20, link_bytes_per_second=1.6e8))}
    assert found[1.0].dedicated_gpus is None
    assert found[1.0].dedicated_hours > 1.1 * 49
    assert found[0.05].dedicated_gpus is not None


def test_the_papers_table_in_columns() -> None:
    one = Row(
        share=0.05,
        paper_hours=73.0,
        literal_hours=84.05,
        dedicated_gpus=12,
        dedicated_hours=53.7,
        colocated_hours=51.3,
    )
    two = dataclasses.replace(one, share=1.0, paper_hours=None, literal_hours=750.0, dedicated_gpus=None)
    assert list(paper_lines([one, two]))[:3] == [
        "online  paper  paper's rate  GPUs beside   hours  same 256 GPUs",
        "   5 %   73 h          84 h           12  53.7 h         51.3 h",
        " 100 %      –         750 h   not enough  53.7 h         51.3 h",
    ]
