from pathlib import Path

import pytest

from masters_ray.config import Learner
from masters_ray.learner.job import LearnerJob, StagePlan
from masters_ray.learner.loop import learning_rate, slots


def test_steps_never_cross_a_stage() -> None:
    job = LearnerJob(
        checkpoint="c",
        settings=Learner(groups_per_step=64),
        alpha=1.0,
        seed=0,
        stages=(StagePlan(stage=0, ratio=0.2, rows=100), StagePlan(stage=1, ratio=0.0, rows=64)),
        export_to=Path("x"),
        storage=Path("y"),
    )
    assert [(plan.stage, groups) for plan, groups in job.steps] == [(0, 64), (0, 36), (1, 64)]


@pytest.mark.parametrize("groups", [1, 3, 5, 8])
def test_every_group_of_a_step_is_taken_by_exactly_one_worker(groups: int) -> None:
    taken = [index for rank in range(2) for slot in slots(groups, 2, 2, rank) for index in slot]
    assert sorted(taken) == list(range(groups))


def test_the_worked_example_of_the_docstring() -> None:
    assert slots(5, 2, 2, 0) == [[0, 4], [2]]
    assert slots(5, 2, 2, 1) == [[1], [3]]


def test_the_learning_rate_rises_and_stays() -> None:
    settings = Learner(learning_rate=1.0, warmup_steps=4)
    assert [learning_rate(settings, step) for step in (1, 2, 5, 100)] == [0.2, 0.4, 1.0, 1.0]
