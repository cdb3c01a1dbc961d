"""The real learner (Ray Train, Ray Data, DeepSpeed) gives one result however its work is split."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from masters_ray.learner.job import TakenStep
from masters_ray.parts import part_of_parameter
from masters_ray.records import LogprobMismatch, Problem, RolloutGroup
from tests.conftest import PAIR
from tests.e2e.learning import RATE, Told, rollouts, state, stored, train
from tests.e2e.runs import long_form

pytestmark = pytest.mark.e2e


@dataclass(frozen=True)
class Plain:
    """One worker, no ZeRO, all groups of a step together."""

    rows: list[RolloutGroup]
    folders: list[Path]
    told: Told
    trained: dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def plain(local_ray: None, tmp_path_factory: pytest.TempPathFactory, questions: list[Problem]) -> Plain:
    root = tmp_path_factory.mktemp("plain")
    rows = rollouts(questions)
    folders = stored(root / "rollouts", rows)
    told = train(root, folders)
    return Plain(rows, folders, told, state(root / "student"))


def test_every_row_is_trained_on_once_in_stage_order(plain: Plain) -> None:
    steps = plain.told.steps
    assert [(one.step, one.stage, one.groups) for one in steps] == [(1, 0, 4), (2, 0, 1), (3, 1, 4)]
    assert [one.answer_tokens for one in steps] == [4 * 9, 9, 4 * 9]
    assert [one.tokens for one in steps] == [
        sum(row.prompt_tokens + 6 for row in rows) for rows in (plain.rows[:4], plain.rows[4:5], plain.rows[5:])
    ]
    assert all(one.grad_norm > 0 and 0 < one.mfu < 1 and one.padding_fraction == 0 for one in steps)
    assert all(one.rewards for one in plain.told.all(TakenStep))
    before = state(PAIR / "student")
    changed = {name for name in before if not torch.equal(before[name], plain.trained[name])}
    frozen = {name for name in before if part_of_parameter(name) == "vision"}
    assert changed
    assert not changed & frozen, "the vision tower is frozen by default"
    assert any("language_model.layers" in name for name in changed)
    agreements = plain.told.all(LogprobMismatch)
    assert [(one.stage, one.rows, one.apart) for one in agreements] == [(0, 5, 0), (1, 4, 0)]
    assert all(one.mean_gap < 1e-5 and one.row for one in agreements)


SAME = ("loss", "policy_loss", "kl", "jsd", "jsd_error_bound", "distillation_reward", "accuracy_reward", "grad_norm")


@pytest.mark.parametrize(
    ("zero_stage", "workers", "budget", "more"),
    [
        pytest.param(2, 3, 1, {"logits_mib": 1}, marks=long_form),
        (3, 2, 150, {"activation_checkpointing": True}),
    ],
)
def test_workers_token_budgets_and_zero_stages_change_nothing(
    zero_stage: int, workers: int, budget: int, more: dict[str, object], plain: Plain, tmp_path: Path
) -> None:
    settings = {"zero_stage": zero_stage, "workers": workers, "tokens_per_micro_batch": budget, "cpus": 0.25, **more}
    told = train(tmp_path, plain.folders, **settings)
    for one, other in zip(told.steps, plain.told.steps, strict=True):
        for name in SAME:
            assert getattr(one, name) == pytest.approx(getattr(other, name), rel=1e-3, abs=1e-5), name
    # Adam divides by the root of the squared gradient, so that rounding shows where a gradient is nearly zero: all
    # but a few of the entries agree far below the size of a step.
    trained = {name: one for name, one in state(tmp_path / "student").items() if "visual" not in name}
    differences = torch.cat([(plain.trained[name] - one).abs().flatten() for name, one in trained.items()])
    assert (differences > 0.1 * RATE).float().mean() < 1e-3
    assert differences.max() <= 2 * len(told.steps) * RATE
