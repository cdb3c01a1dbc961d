import dataclasses
import math
from typing import Any

import pytest

from masters_ray import config as configuration
from masters_ray.config import Rollout
from masters_ray.method.schedule import Iteration
from masters_ray.plan.forecast import Forecast, LearningTimes, forecast, learning
from masters_ray.plan.rates import GroupMaking, Rates
from tests.conftest import DEMO

exactly = pytest.approx
T, S, J = "teacher", "student", "judge"


@pytest.mark.parametrize(
    ("rounds", "batches", "replicas", "seconds"),
    [
        ([{S: 3}], 4, {}, 12),  # one after the other on a replica
        ([{S: 3}], 3, {S: 2}, 6),
        ([{S: 3}], 2, {S: 9}, 3),  # no faster than one batch
        ([{T: 5, S: 3}, {S: 2}], 1, {}, 7),  # a round waits for all of the one before
        ([{T: 3}, {J: 1}], 2, {}, 7),  # A is judged while B is answered
        ([{T: 1}, {S: 2}], 3, {}, 7),  # the slowest pool sets the pace: 1 + 3 · 2
        ([{S: 3}, {T: 1}, {S: 3}], 2, {}, 12),  # first come, first served
    ],
)
def test_groups_are_made_by_replicas_that_take_one_call_after_the_other(
    rounds: list[dict[str, float]], batches: int, replicas: dict[str, int], seconds: float
) -> None:
    making = GroupMaking(rounds=rounds, replicas={T: 1, S: 1, J: 1} | replicas, batch_rows=1)
    assert making.seconds(batches) == seconds


def test_the_last_batch_may_be_smaller() -> None:
    making = GroupMaking(rounds=[{S: 0.5}], replicas={S: 2}, batch_rows=4)
    assert (making.seconds(10), making.seconds(0)) == ((4 + 2) * 0.5, 0.0), "on the first of them"


CALLS = {"answer": {T: 0.5, S: 0.25}, "judge": {J: 0.125}, "score": {T: 0.0625, S: 0.0625, "reference": 0.0625}}
"""16 questions: the teacher answers in 8 s, beside the student in 4 s; verdicts take 2 s, scores of each model 1 s."""
RATES = Rates(group_seconds=0.5, publish_seconds=0.5, load_seconds=0.25, start_seconds=4.0, calls=CALLS)
INSTANT = dataclasses.replace(RATES, publish_seconds=0.0, load_seconds=0.0, start_seconds=0.0)
SECOND_STEPS = dataclasses.replace(INSTANT, group_seconds=0.25)


def learned(
    steps: int, online: set[int], rates: Rates = RATES, making_seconds: float = 3.0, **rollout: Any
) -> LearningTimes:
    """Strictly on-policy without a limit unless said otherwise, iterations of 4 questions."""
    positions = range(4)
    iterations = [Iteration(number=n, stage=0, positions=positions, online=n in online) for n in range(1, steps + 1)]
    chosen: dict[str, Any] = {"max_staleness": 0, "max_wait_seconds": math.inf} | rollout
    return learning(iterations, lambda questions: making_seconds, rates, Rollout(**chosen))


def test_without_online_iterations_only_the_start_and_the_learner_take_time() -> None:
    nothing = LearningTimes(seconds=4 + 10 * 2.0, waited_seconds=0.0, ages=(), late=0, questions=0, published=0)
    assert learned(10, set()) == nothing


@pytest.mark.parametrize(
    ("max_staleness", "seconds", "waited", "published"),
    [
        (0, 27.75, 3.25, 1),  # 4 + four steps 8 + publish 0.5 + load 0.25 + groups 3 + six steps 12
        (1, 25.75, 1.25, 1),  # version 3 is out at 10.5, groups at 13.75, the learner comes at 12.5
        (3, 24.5, 0.0, 1),  # version 1 is out at 6.5, groups at 9.75: only publishing is left
        (4, 24.0, 0.0, 0),  # version 0 need not be published
        (9, 24.0, 0.0, 0),  # nothing is older than version 0
    ],
)
def test_staleness_hides_rollouts_behind_learning(
    max_staleness: int, seconds: float, waited: float, published: int
) -> None:
    found = learned(10, {5}, max_staleness=max_staleness)
    assert (found.seconds, found.waited_seconds) == (exactly(seconds), exactly(waited))
    assert (found.published, found.ages) == (published, (min(max_staleness, 4),))


def test_groups_are_made_for_one_iteration_after_the_other() -> None:
    """On-policy 3 · (3 + 2) s. Behind: groups at 3, 6 and 9 s, steps to 5, 8 and 11 s."""
    assert learned(3, {1, 2, 3}, INSTANT).seconds == 15.0
    found = learned(3, {1, 2, 3}, INSTANT, max_staleness=8)
    assert (found.seconds, found.ages, found.questions) == (11.0, (0, 1, 2), 12)
    assert learned(10, set(range(1, 11)), max_staleness=1).published == 8, "versions 0, 0, 1, …, 8, each once"


def test_the_learner_waits_no_longer_than_it_may() -> None:
    """start 4 + steps 8 + publish 0.5 + wait 1 + steps 12; groups in the last moment, after 3.25 s, are in time."""
    late, in_time = (learned(10, {5}, max_wait_seconds=seconds) for seconds in (1.0, 3.25))
    assert (late.seconds, late.waited_seconds, late.late, late.ages) == (25.5, 1.0, 1, ())
    assert (in_time.seconds, in_time.late, in_time.ages) == (27.75, 0, (0,))


def test_a_late_iteration_is_finished_and_one_that_was_passed_is_left_out() -> None:
    """Steps of 1 s, groups in 4.5 s. 2 is made from 0 to 4.5; the learner leaves it at 2 and 3 at 4. So 3 is not begun,
    and 12 is made from 5, when version 3 is there, to 9.5, before the learner comes to it at 13."""
    found = learned(12, {2, 3, 12}, SECOND_STEPS, 4.5, max_staleness=8, max_wait_seconds=1.0)
    assert (found.seconds, found.waited_seconds, found.late, found.ages) == (14.0, 2.0, 2, (8,))
    assert found.questions == 8


def test_in_turns_replicas_work_only_while_the_learner_waits() -> None:
    """As strictly on-policy beside; version 0 saves publishing and loading, and hides nothing."""
    assert learned(10, {5}, placement="turns").seconds == 27.75
    assert learned(10, {5}, max_staleness=4, placement="turns").seconds == 27.0


def demo(*words: str) -> Forecast:
    """Of three stages of 32 questions, two iterations of 16 in each, the first online, strictly on-policy unless said
    otherwise; one batch makes an iteration's groups."""
    usual = ("data.train.rows=96", "schedule.step=0.1", "rollout.online_fraction=0.5", "rollout.max_staleness=0")
    config = configuration.load(DEMO, [*usual, *words])
    return forecast(config, dataclasses.replace(SECOND_STEPS, group_seconds=1 / 16), 96, 48)


def test_a_configuration_is_forecast_phase_by_phase() -> None:
    """16 questions a stage before learning take 8 + 2 + 1 s. Online the same, three times, and six steps."""
    found = demo()
    assert (found.steps, found.online_fraction, found.replicas) == (6, 0.5, {T: 1, S: 1, J: 1})
    assert (found.phases["rollouts"].seconds, found.learning.seconds) == (33.0, 39.0)
    busy = {T: exactly(27 / 39), S: exactly(15 / 39), J: exactly(9 / 39), "learner": exactly(6 / 39)}
    assert found.phases["learner"].busy == busy


@pytest.mark.parametrize(
    ("words", "times", "asked"),
    [
        ((), 0, 0),
        (("evaluation.every=stage",), 2, 48),
        (("evaluation.every=2", "evaluation.questions=10"), 2, 10),
        (("evaluation.every=4", "learner.keep=best", "evaluation.questions=500"), 2, 48),
    ],
)
def test_measuring_on_the_way_costs_engines_answers_and_another_start_of_the_learner(
    words: tuple[str, ...], times: int, asked: int
) -> None:
    """Of six steps. Online iterations have engines of their own to start anew."""
    config = configuration.load(DEMO, ["data.train.rows=96", "schedule.step=0.1", "learner.groups_per_step=16", *words])
    rates = dataclasses.replace(
        RATES, group_seconds=1 / 16, measuring_seconds=8.0, evaluation_seconds=0.5, engines_seconds=16.0
    )
    found = forecast(config, rates, 96, 48)
    assert found.steps == 6
    on_the_way = [one.seconds for name, one in found.phases.items() if name == "evaluation while learning"]
    assert on_the_way == ([times * (8.0 + 0.5 * asked)] if times else [])
    assert found.phases["learner"].seconds == exactly(6.0 + 4.0 * (1 + times))
    assert found.phases["start of the engines"].seconds == 16.0
    config.rollout.online_fraction = 0.5
    assert forecast(config, rates, 96, 48).phases["start of the engines"].seconds == 16.0 * (1 + times)


@pytest.mark.parametrize(
    ("words", "rollouts", "learning_seconds", "judge_busy"),
    [
        (("judge.follows_student=true",), 33, 39, 3),  # the student's replicas judge online
        (("rollout.spare_rows=true",), 66, 39, 9),  # all 32 of a stage in one batch: 16 + 4 + 2 s
        (("rollout.batch_rows=4", "teacher.replicas=4"), 21, 21, 9),  # the student is busiest: 4 + 2 + 1, 4 + 1 s
        (("rollout.placement=turns", "rollout.max_staleness=5"), 33, 39, 9),  # nothing overlaps in turns
        (("rollout.max_staleness=5",), 33, 35, 9),  # all by version 0: groups at 11, 22, 33, two steps
    ],
)
def test_the_configuration_says_who_makes_what(
    words: tuple[str, ...], rollouts: float, learning_seconds: float, judge_busy: float
) -> None:
    found = demo(*words)
    assert (found.phases["rollouts"].seconds, found.learning.seconds) == (rollouts, learning_seconds)
    assert found.phases["learner"].busy[J] * learning_seconds == exactly(judge_busy)
