from pathlib import Path

import pytest

from masters_ray.config import Learner, Reward
from masters_ray.errors import LearnerError
from masters_ray.learner.agreement import check_on_policy, compared_with_engine
from masters_ray.learner.job import Board, LearnerJob, Pinned, StagePlan
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


def test_what_is_pinned_is_read_once() -> None:
    board = Board()
    board.pin(Pinned(notes=["a"]))
    board.pin(Pinned(notes=["b"]))
    assert board.read().notes == ["a", "b"]
    assert board.read() == Pinned()


def test_a_student_that_is_not_the_one_the_rollouts_were_made_with_is_refused() -> None:
    assert compared_with_engine(1e-6, "float32").endswith("agree to 1.0e-06 nats per answer token")
    assert compared_with_engine(0.2, "bfloat16").endswith("agree to 2.0e-01 nats per answer token")
    with pytest.raises(LearnerError, match="differ from the stored ones by 0.2 nats per token; expected at most 0.1"):
        compared_with_engine(0.2, "float32")


def test_the_learning_rate_rises_and_stays() -> None:
    settings = Learner(learning_rate=1.0, warmup_steps=4)
    assert [learning_rate(settings, step) for step in (1, 2, 5, 100)] == [0.2, 0.4, 1.0, 1.0]


def test_fresh_answers_of_the_weights_that_learn_from_them_must_be_the_engines_own() -> None:
    check_on_policy([0, 0], 1e-6, "float32", 3)
    check_on_policy([2, 0], 5.0, "float32", 3)  # the student has moved since
    check_on_policy([], 0.0, "float32", 3)
    with pytest.raises(LearnerError, match="step 3: .* differ from the engine's by 0.2 nats per token"):
        check_on_policy([0, 0], 0.2, "float32", 3)
