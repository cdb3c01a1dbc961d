"""The real learner (Ray Train, Ray Data, DeepSpeed) gives one result however its work is split."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from masters_ray import store, weights
from masters_ray.config import Learner
from masters_ray.engines import hf
from masters_ray.errors import LearnerError
from masters_ray.learner import GroupRewards, LearnerJob, StagePlan, fit
from masters_ray.records import Problem, StepMetrics
from tests.builders import group, scored
from tests.conftest import PAIR

pytestmark = pytest.mark.e2e
RATE = 1e-4


def stored(folder: Path, problems: list[Problem]) -> list[Path]:
    """Two stages of rollouts with answers of several lengths: 5 and 4 groups."""
    rows = [
        group(
            [
                scored([40 + index, 41, 2], k=4, seed=3 * index),
                scored([50 + index, 2], k=4, seed=3 * index + 1, accuracy=index % 2, source="student"),
                scored([60, 61, 62, 2], k=4, seed=3 * index + 2, accuracy=0, source="student"),
            ],
            position=index,
            stage=0 if index < 5 else 1,
            of=problem,
        )
        for index, problem in enumerate(problems[:9])
    ]
    folders = [folder / "stage-0", folder / "stage-1"]
    for where, part in zip(folders, (rows[:5], rows[5:]), strict=True):
        writer = store.Writer(where)
        writer.write(0, part)
        writer.finish({})
    return folders


def train(root: Path, folders: list[Path], **settings: object) -> tuple[list[StepMetrics], list[GroupRewards], Path]:
    chosen = Learner(
        **{"cpus": 0.5, "dtype": "float32", "groups_per_step": 4, "groups_per_micro_batch": 1, "learning_rate": RATE}
        | settings  # type: ignore[arg-type]
    )
    job = LearnerJob(
        checkpoint=str(PAIR / "student"),
        settings=chosen,
        alpha=1.0,
        seed=0,
        stages=(StagePlan(stage=0, ratio=0.2, rows=5), StagePlan(stage=1, ratio=0.0, rows=4)),
        export_to=root / "student",
        storage=root / "learner",
    )
    steps: list[StepMetrics] = []
    rewards: list[GroupRewards] = []

    def on_steps(new: Sequence[StepMetrics], given: Sequence[GroupRewards]) -> None:
        steps.extend(new)
        rewards.extend(given)

    fit(job, folders, on_steps)
    return steps, rewards, job.export_to


def state(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor.float() for name, tensor in weights.tensors(folder)}


@pytest.fixture(scope="module")
def plain(
    local_ray: None, tmp_path_factory: pytest.TempPathFactory, questions: list[Problem]
) -> tuple[list[Path], list[StepMetrics], dict[str, torch.Tensor]]:
    """One worker, no ZeRO, one group at a time."""
    root = tmp_path_factory.mktemp("plain")
    folders = stored(root / "rollouts", questions)
    steps, rewards, exported = train(root, folders, zero_stage=0)
    assert rewards
    assert [round(one.distillation_reward, 6) >= 0 for one in steps] == [True] * 3
    return folders, steps, state(exported)


def test_every_row_is_trained_on_once_in_stage_order(
    plain: tuple[list[Path], list[StepMetrics], dict[str, torch.Tensor]],
) -> None:
    _, steps, trained = plain
    assert [(one.step, one.stage, one.groups) for one in steps] == [(1, 0, 4), (2, 0, 1), (3, 1, 4)]
    assert [one.answer_tokens for one in steps] == [4 * 9, 9, 4 * 9]
    assert all(one.gradient_norm > 0 for one in steps)
    before = state(PAIR / "student")
    changed = {name for name in before if not torch.equal(before[name], trained[name])}
    frozen = {name for name in before if hf.part_of_parameter(name) == "vision"}
    assert changed
    assert not changed & frozen, "the vision tower is frozen by default"
    assert any("language_model.layers" in name for name in changed)


@pytest.mark.parametrize(
    ("zero_stage", "workers", "micro_batch"), [(1, 2, 2), (2, 1, 4), (3, 2, 1)], ids=["zero1", "zero2", "zero3"]
)
def test_workers_micro_batches_and_zero_stages_change_nothing(
    zero_stage: int,
    workers: int,
    micro_batch: int,
    plain: tuple[list[Path], list[StepMetrics], dict[str, torch.Tensor]],
    tmp_path: Path,
) -> None:
    folders, expected, trained = plain
    steps, _, exported = train(
        tmp_path, folders, zero_stage=zero_stage, workers=workers, groups_per_micro_batch=micro_batch
    )
    for one, other in zip(steps, expected, strict=True):
        for name in ("loss", "policy_loss", "kl", "jsd", "distillation_reward", "gradient_norm", "accuracy_reward"):
            assert getattr(one, name) == pytest.approx(getattr(other, name), rel=1e-3, abs=1e-5), name
    # Adam divides by the root of the squared gradient, so that rounding shows where a gradient is nearly zero: all
    # but a few of the entries agree far below the size of a step.
    differences = torch.cat(
        [(trained[name] - tensor).abs().flatten() for name, tensor in state(exported).items() if "visual" not in name]
    )
    assert (differences > 0.1 * RATE).float().mean() < 1e-3
    assert differences.max() <= 2 * len(steps) * RATE


def test_a_learner_that_stopped_goes_on_from_its_last_checkpoint(
    plain: tuple[list[Path], list[StepMetrics], dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    folders, expected, trained = plain
    settings = {"zero_stage": 0, "checkpoint_every": 1}
    with pytest.raises(LearnerError, match="the dataset ended at step 3 of 3"):
        train(tmp_path, folders[:1], **settings)
    steps, _, exported = train(tmp_path, folders, **settings)
    assert [one.step for one in steps] == [3]
    assert steps[0].loss == pytest.approx(expected[2].loss, abs=1e-6)
    assert all(torch.equal(trained[name], tensor) for name, tensor in state(exported).items())


def test_an_error_in_a_worker_is_told_with_its_cause(
    plain: tuple[list[Path], list[StepMetrics], dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    folders, _, _ = plain
    with pytest.raises(LearnerError, match="rows came out of order"):
        train(tmp_path, list(reversed(folders)))
