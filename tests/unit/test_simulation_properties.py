from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from masters_ray.simulation import Pool, Setup, simulate
from tests.unit.test_simulation import call, changed, exactly

COSTS = st.integers(0, 8).map(lambda eighths: eighths / 8)
"""Seconds."""
POOLS = st.sampled_from(("teacher", "student"))
METHODS = st.sampled_from(("answer", "score"))
"""Few, so that calls of one method often follow one another."""


@st.composite
def runs(draw: st.DrawFn, most_calls: int = 1, **fixed: Any) -> Setup:
    """Dedicated engines; a batch makes so many calls at most."""
    count = draw(st.integers(1, most_calls))
    iterations = draw(st.integers(1, 12))
    made = tuple(call(draw(POOLS), draw(COSTS), draw(COSTS), draw(METHODS)) for _ in range(count))
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


@given(runs(4, load_seconds=0.0))
def test_replicas_work_exactly_as_long_as_they_are_asked_to(setup: Setup) -> None:
    found = simulate(setup)
    assert found.fresh == len(setup.online)
    for name, pool in setup.pools.items():
        busy = found.pool_utilisation[name] * found.wall_seconds * pool.replicas
        assert busy == exactly(len(setup.online) * service_of(setup, name))


@given(runs(4, load_seconds=0.0, cores=1))
def test_a_single_core_does_everything_one_after_the_other(setup: Setup) -> None:
    found = simulate(setup)
    learner = setup.iterations * setup.learner_seconds + found.syncs * setup.publish_seconds
    calls = len(setup.online) * (service_of(setup, "teacher") + service_of(setup, "student"))
    assert found.wall_seconds == exactly(setup.start_seconds + learner + calls)


def by_recurrence(setup: Setup, making: Callable[[bool], float]) -> float:
    """Wall seconds, written out: groups of n are there ``making(v(n) > 0)`` after those before n and after version
    v(n); a step begins when the one before is published and its groups are there."""
    there = {0: setup.start_seconds}
    needed = {max(0, number - 1 - setup.max_staleness) for number in setup.online}
    now, made = there[0], there[0]
    for number in range(1, setup.iterations + 1):
        if number in setup.online:
            version = max(0, number - 1 - setup.max_staleness)
            made = max(made, there[version]) + making(version > 0)
            now = max(now, made)
        now += setup.learner_seconds + setup.publish_seconds * (number in needed)
        there[number] = now
    return now


@given(runs(calls=(call(), call("student", 0.5, 0.25)), pools={"student": Pool(replicas=1)}))
def test_batches_on_one_replica_take_what_the_recurrence_says(setup: Setup) -> None:
    """Both calls of all batches share it: their sum, and loading where weights are new."""

    def making(new: bool) -> float:
        return service_of(setup, "student") + setup.load_seconds * new

    assert simulate(setup).wall_seconds == exactly(by_recurrence(setup, making))


@given(runs(6, batch_rows=9, pools={"teacher": Pool(replicas=1), "student": Pool(replicas=1)}))
def test_rounds_of_one_batch_take_what_the_recurrence_says(setup: Setup) -> None:
    """Each takes as long as the pool that has most to do; the student's first begins with loading where weights are
    new."""

    def making(new: bool) -> float:
        seconds, to_load = 0.0, setup.load_seconds * new
        for calls in setup.rounds:
            busy = dict.fromkeys(setup.pools, 0.0)
            for one in calls:
                busy[one.pool] += one.seconds(setup.groups_per_step)
            if any(one.pool == "student" for one in calls):
                busy["student"] += to_load
                to_load = 0.0
            seconds += max(busy.values())
        return seconds

    assert simulate(setup).wall_seconds == exactly(by_recurrence(setup, making))


@given(runs(), st.integers(1, 3))
def test_more_replicas_are_never_slower_on_dedicated_engines(setup: Setup, more: int) -> None:
    pools = {name: dataclasses.replace(pool, replicas=pool.replicas + more) for name, pool in setup.pools.items()}
    assert simulate(changed(setup, pools=pools)).wall_seconds <= simulate(setup).wall_seconds + 1e-9


@given(runs())
def test_older_weights_are_never_slower_on_dedicated_engines(setup: Setup) -> None:
    older = changed(setup, max_staleness=setup.max_staleness + 1)
    assert simulate(older).wall_seconds <= simulate(setup).wall_seconds + 1e-9


@given(runs(3, max_wait_seconds=0.5), st.sampled_from([None, 1, 2]), st.booleans())
def test_no_online_iteration_is_lost_and_waiting_is_bounded(setup: Setup, cores: int | None, colocated: bool) -> None:
    found = simulate(changed(setup, cores=cores, colocated=colocated, wake_seconds=0.25))
    assert found.fresh + found.stored == len(setup.online)
    assert found.waited_seconds <= 0.5 * len(setup.online) + 1e-9
    assert all(0 <= share <= 1 + 1e-9 for share in found.pool_utilisation.values())
