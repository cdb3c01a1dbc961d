import math
from typing import Any

import pytest
import torch

from masters_ray.method.grpo import LossOutputs, OldPolicy, advantages, distillation_rewards, group_losses, kl_estimates
from tests.tensors import loss_batch, loss_config


@pytest.mark.parametrize(
    ("divergences", "least_spread", "expected"),
    [
        ([0.1, 0.3, 0.2], 0.0, [1.0, 0.0, 0.5]),
        ([0.25, 0.25], 0.0, [0.0, 0.0]),
        ([0.08458233, 0.08458231, 0.0845], 0.0, [0.0, 0.0, 1.0]),  # rounding is no difference
        ([0.08458233, 0.08458231], 0.0, [0.0, 0.0]),
        ([0.1, 0.101, 0.1005], 0.0009, [1.0, 0.0, 0.5]),
        ([0.1, 0.101, 0.1005], 0.001, [0.0, 0.0, 0.0]),
    ],
)
def test_distillation_rewards_are_one_for_the_closest_and_zero_for_the_farthest(
    divergences: list[float], least_spread: float, expected: list[float]
) -> None:
    assert distillation_rewards(torch.tensor(divergences), least_spread).tolist() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("rewards", "expected"),
    [
        # mean 1, squared deviations 1 0 1 0, population's std = sqrt(1/2)
        ([2.0, 1.0, 0.0, 1.0], [math.sqrt(2), 0.0, -math.sqrt(2), 0.0]),
        ([1.0, 1.0 + 5e-5], [0.0, 0.0]),  # flat
    ],
)
def test_advantages_are_deviations_from_the_group(rewards: list[float], expected: list[float]) -> None:
    assert advantages(torch.tensor(rewards)).tolist() == pytest.approx(expected, abs=1e-5)


def test_the_estimates_of_the_kl_divergence_are_zero_at_the_reference() -> None:
    new, reference = torch.tensor([-1.0, -2.0]), torch.tensor([-1.0, -1.5])
    for estimator, expected in (("k1", -0.5), ("k2", 0.125), ("k3", math.exp(0.5) - 0.5 - 1)):
        assert kl_estimates(estimator, new, reference).tolist() == pytest.approx([0.0, expected])  # type: ignore[arg-type]


def near(*expected: float) -> Any:
    return pytest.approx(list(expected), abs=1e-5)


def test_the_loss_of_groups_by_hand() -> None:
    """Two groups of two answers. The first: tokens (0, 0) and (1). JSD 0.2, 0.4 | 0.1, so D = 0.3, 0.1 and R_distill =
    0, 1. The second is the same with twice the JSD and other rewards.

    R_acc = 1, 0 gives R = 1, 1: flat, A = 0. With alpha 0: A = +1, -1 and the objective's mean is 0 at ratio 1.
    KL: d = 0.5 on the last token only: mean_j mean_t = (0 + k3) / 2.
    """
    new = torch.tensor([-1.0, -1.0, -2.0] * 2, requires_grad=True)
    k3 = math.exp(0.5) - 1.5

    def of(cut: tuple[bool, ...] = (False, False), **weights: Any) -> LossOutputs:
        batch = loss_batch(
            torch.tensor([-1.0, -1.0, -1.5] * 2),
            torch.tensor([0, 0, 1, 2, 2, 3]),
            [1.0, 0.0, 0.0, 1.0],
            group_of=torch.tensor([0, 0, 1, 1]),
            reasoning=torch.tensor([0.0, 1.0, 0.0, 0.0]),
            cut=torch.tensor([*cut, False, False]),
        )
        errors = torch.tensor([0.01, 0.03, 0.04] * 2)
        student = new, torch.tensor([0.2, 0.4, 0.1, 0.4, 0.8, 0.2]), errors
        return group_losses(*loss_config(**weights), batch, student, 1.5)

    both = of()
    assert both.distillation.tolist() == near(0, 1, 0, 1)
    assert both.divergences.tolist() == near(0.3, 0.1, 0.6, 0.2)
    assert both.old.advantages.tolist() == near(0, 0, -1, 1)
    assert both.loss.tolist() == near(0.1 * k3 / 2 + 0.2, 0.1 * k3 / 2 + 0.4)
    told = {name: values.tolist() for name, values in both.metrics.items()}
    assert told.pop("loss") == both.loss.tolist() and told.pop("kl") == near(k3 / 2, k3 / 2)
    assert told.pop("jsd") == near(0.2, 0.4) and told.pop("jsd_error_bound") == near(0.03, 0.03)
    assert told.pop("accuracy_reward") == told.pop("distillation_reward") == [0.5, 0.5]
    assert told.pop("advantage_std") == near(0, 1) and told.pop("zero_std_groups") == [True, False]
    assert told.pop("answer_length") == [1.5, 1.5] and told.pop("cut_share") == [0, 0]
    assert told.pop("policy_loss") == near(0, 0) and told.pop("clip_fraction") == [0, 0] and not told
    assert of((True, False)).metrics["cut_share"].tolist() == [0.5, 0.0]

    sharp = of(alpha=0.0)
    assert sharp.old.advantages.tolist() == near(1, -1, -1, 1)
    sharp.loss[0].backward()
    # d/dnew of -mean_j mean_t ratio·A: -1/4, -1/4, +1/2; of beta·KL on the last token: 0.1/2·(1 - e^0.5)
    assert new.grad is not None
    assert new.grad.tolist() == near(-0.25, -0.25, 0.5 + 0.05 * (1 - math.exp(0.5)), 0, 0, 0)

    # the reasoning reward evens the accuracy out; without the policy's loss only the divergence is left
    assert of(alpha=0.0, rho=1.0).old.advantages[:2].tolist() == [0.0, 0.0]
    # the first group's divergences, 0.3 and 0.1, lie too close together to count
    apart = of(least_spread=0.25)
    assert apart.distillation.tolist() == near(0, 0, 0, 1)
    assert apart.old.advantages[:2].tolist() == near(1, -1)
    assert of(policy_weight=0.0).loss.tolist() == near(0.2, 0.4)
    assert of(policy_weight=0.0, jsd_weight=0.5).loss.tolist() == near(0.1, 0.2)
    assert of(kl_beta=0.3, jsd_weight=2.0).loss.tolist() == near(0.3 * k3 / 2 + 0.4, 0.3 * k3 / 2 + 0.8)
    # R = 1, 1.5
    assert of(alpha=1.5).old.advantages[:2].tolist() == near(-1, 1)
    # the right answer was cut: its judge's word counts, or it is wrong, or only the divergence is learned from it
    for what, relative, counted in (("judge", [1, -1], 0.5), ("zero", [0, 0], 0.0), ("mask", [0, -1], 0.5)):
        cut = of((True, False), alpha=0.0, cut_answers=what)
        assert cut.old.advantages.tolist() == near(*relative, -1, 1)
        assert cut.metrics["accuracy_reward"].tolist() == [counted, 0.5]
        assert cut.metrics["jsd"].tolist() == near(0.2, 0.4)
    # every token alike: sums over a group's tokens, over 1.5 tokens per group of the step
    by_token = of(aggregation="token")
    assert by_token.metrics["jsd"].tolist() == near(0.7 / 1.5, 1.4 / 1.5)
    assert by_token.metrics["jsd_error_bound"].tolist() == near(0.08 / 1.5, 0.08 / 1.5)
    assert by_token.metrics["kl"].tolist() == near(k3 / 1.5, k3 / 1.5)
    assert by_token.divergences[:2].tolist() == near(0.3, 0.1)


@pytest.mark.parametrize("written", ["before the first update", "in an online iteration"])
def test_the_ratio_is_clipped_to_the_policy_that_wrote(written: str) -> None:
    """One token per answer, log-probabilities 0 and advantages ±1 there. Now the ratios are 1.5 and 0.9: the first is
    cut at 1.2 and has no gradient, the second counts as it is."""
    new = torch.tensor([1.5, 0.9]).log().requires_grad_()
    batch = loss_batch(new.detach(), torch.arange(2), [1.0, 0.0])
    batch.fresh = torch.tensor([written == "in an online iteration"] * 2)
    old = None if batch.fresh.all() else OldPolicy(logprobs=torch.zeros(2), advantages=torch.tensor([1.0, -1.0]))
    student = new, torch.tensor([0.2, 0.1]), torch.zeros(2)
    found = group_losses(*loss_config(alpha=0.0, kl_beta=0.0, jsd_weight=0.0), batch, student, 2, old)
    assert found.metrics["policy_loss"].tolist() == near(-(1.2 - 0.9) / 2)
    assert found.metrics["clip_fraction"].tolist() == [0.5]
    found.loss.sum().backward()
    assert new.grad is not None
    assert new.grad.tolist() == near(0.0, 0.45)  # d/dnew of 0.9 / 2
