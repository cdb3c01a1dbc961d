from pathlib import Path

from masters_ray.config import Learner, Reward
from masters_ray.learner.job import LearnerJob, StagePlan
from masters_ray.learner.loop import learning_rate
from tests.builders import iterations


def test_steps_never_cross_a_stage() -> None:
    job = LearnerJob(
        checkpoint="c",
        settings=Learner(groups_per_step=64),
        reward=Reward(),
        seed=0,
        stages=(StagePlan(stage=0, ratio=0.2, rows=100), StagePlan(stage=1, ratio=0.0, rows=64)),
        iterations=iterations((100, 64), 64),
        export_to=Path("x"),
        adapters_to=Path("a"),
        storage=Path("y"),
    )
    assert [(plan.stage, len(one.positions)) for plan, one in job.steps] == [(0, 64), (0, 36), (1, 64)]


def test_the_learning_rate_rises_and_stays() -> None:
    settings = Learner(learning_rate=1.0, warmup_steps=4)
    assert [learning_rate(settings, step) for step in (1, 2, 5, 100)] == [0.2, 0.4, 1.0, 1.0]
