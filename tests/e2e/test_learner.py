"""The real learner (Ray Train, Ray Data, DeepSpeed) gives one result however its work is split."""

from pathlib import Path

import pytest
import torch

from masters_ray.families import Architecture
from masters_ray.learner.job import TakenStep
from masters_ray.records import LogprobMismatch, Problem
from tests.conftest import PAIR
from tests.e2e.learning import RATE, rollouts, state, stored, train

pytestmark = pytest.mark.e2e
SAME = ("loss", "policy_loss", "kl", "jsd", "jsd_error_bound", "distillation_reward", "accuracy_reward", "grad_norm")


def test_every_row_is_trained_on_once_in_stage_order_and_workers_budgets_and_zero_change_nothing(
    local_ray: None, tmp_path: Path, questions: list[Problem]
) -> None:
    rows = rollouts(questions)
    folders = stored(tmp_path / "rollouts", rows)
    told = train(tmp_path / "plain", folders)
    steps, plain = told.steps, state(tmp_path / "plain" / "student")
    assert [(one.step, one.stage, one.groups) for one in steps] == [(1, 0, 4), (2, 0, 1), (3, 1, 4)]
    assert [one.answer_tokens for one in steps] == [4 * 9, 9, 4 * 9]
    of_steps = rows[:4], rows[4:5], rows[5:]
    assert [one.tokens for one in steps] == [sum(row.prompt_tokens + 6 for row in some) for some in of_steps]
    assert all(one.grad_norm > 0 and 0 < one.mfu < 1 and one.padding_fraction == 0 for one in steps)
    assert all(one.rewards for one in told.all(TakenStep))
    before = state(PAIR / "student")
    changed = {name for name in before if not torch.equal(before[name], plain[name])}
    assert any("language_model.layers" in name for name in changed)
    assert "vision" not in set(map(Architecture({"model_type": "qwen3_vl"}).part_of, changed)), (
        "the vision tower is frozen by default"
    )
    agreements = told.all(LogprobMismatch)
    assert [(one.stage, one.rows, one.apart) for one in agreements] == [(0, 5, 0), (1, 4, 0)]
    assert all(one.mean_gap < 1e-5 and one.row for one in agreements)

    split = {"zero_stage": 3, "workers": 2, "tokens_per_micro_batch": 150, "activation_checkpointing": True}
    again = train(tmp_path / "split", folders, **split, cpus=0.25)
    for one, other in zip(again.steps, steps, strict=True):
        for name in SAME:
            assert getattr(one, name) == pytest.approx(getattr(other, name), rel=1e-3, abs=1e-5), name
    # Adam divides by the root of the squared gradient, so that rounding shows where a gradient is nearly zero: all
    # but a few of the entries agree far below the size of a step.
    trained = {name: one for name, one in state(tmp_path / "split" / "student").items() if "visual" not in name}
    differences = torch.cat([(plain[name] - one).abs().flatten() for name, one in trained.items()])
    assert (differences > 0.1 * RATE).float().mean() < 1e-3
    assert differences.max() <= 2 * len(steps) * RATE
