"""Group relative policy optimisation on one group (METHOD 6; appendix section B, eq. 9 to 11)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from masters_ray.rewards import distillation_rewards

EPSILON = 1e-6
"""Added to the standard deviation of the rewards."""
FLAT = 1e-4
"""A group whose rewards spread less has advantage 0: rounding noise must not become a gradient of full size."""


def advantages(rewards: Tensor) -> Tensor:
    """A_j = (R_j − mean R) / (std R + ε) over the answers of one question; population standard deviation.

    rewards: [G]. A flat group (max − min < FLAT) gives zeros.

    Example: ``[2., 0.]`` gives ``[1., -1.]`` up to ε.
    """
    if rewards.max() - rewards.min() < FLAT:
        return torch.zeros_like(rewards)
    return (rewards - rewards.mean()) / (rewards.std(correction=0) + EPSILON)


def k3(new_logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """Schulman's k3 estimate of KL(new ‖ reference) per sampled token: exp(d) − d − 1 with d = reference − new."""
    difference = reference_logprobs - new_logprobs
    return difference.exp() - difference - 1


def policy_objective(new_logprobs: Tensor, old_logprobs: Tensor, advantage: Tensor, clip_epsilon: float) -> Tensor:
    """min(ratio·A, clip(ratio, 1 ± ε)·A) per token, ratio = exp(new − old). All arguments [tokens].

    With one update per batch old is ``new.detach()``: the ratio is 1, and only its gradient counts (eq. 11).
    """
    ratio = (new_logprobs - old_logprobs).exp()
    return torch.minimum(ratio * advantage, ratio.clamp(1 - clip_epsilon, 1 + clip_epsilon) * advantage)


@dataclass(frozen=True, kw_only=True)
class GroupTerms:
    """Loss and its parts for one group; every field is a scalar tensor unless said otherwise."""

    loss: Tensor
    """L_GRPO + jsd_weight · mean_j D_j; the only field with a gradient."""
    policy_loss: Tensor
    """−mean_j mean_t of the clipped objective."""
    kl: Tensor
    """mean_j mean_t of k3 against the reference policy, in nats."""
    jsd: Tensor
    """mean_j D_j, in nats."""
    advantages: Tensor
    """[G]"""
    distillation: Tensor
    """[G], R_distill"""
    divergences: Tensor
    """[G], D_j in nats"""


def answer_means(per_token: Tensor, answer_of: Tensor, answers: int) -> Tensor:
    """Mean over the tokens of each answer: [tokens] with the answer of each token → [answers]."""
    totals = per_token.new_zeros(answers).index_add(0, answer_of, per_token)
    return totals / torch.bincount(answer_of, minlength=answers)


def group_terms(
    *,
    new_logprobs: Tensor,
    reference_logprobs: Tensor,
    token_jsd: Tensor,
    answer_of: Tensor,
    accuracy: Tensor,
    alpha: float,
    kl_beta: float,
    clip_epsilon: float,
    jsd_weight: float,
) -> GroupTerms:
    """The Masters loss of one group (METHOD 6): −mean_j mean_t [ratio·A_j − β·KL_t] + mean_j D_j.

    new_logprobs, reference_logprobs, token_jsd: [tokens] over all answers, each belonging to answer ``answer_of``
    (0 … G−1); accuracy: [G]. The advantages come from R_acc + alpha · R_distill, detached.
    """
    answers = accuracy.shape[0]
    divergences = answer_means(token_jsd, answer_of, answers)
    distillation = distillation_rewards(divergences)
    advantage = advantages(accuracy + alpha * distillation)
    objective = policy_objective(new_logprobs, new_logprobs.detach(), advantage[answer_of], clip_epsilon)
    policy_loss = -answer_means(objective, answer_of, answers).mean()
    kl = answer_means(k3(new_logprobs, reference_logprobs), answer_of, answers).mean()
    jsd = divergences.mean()
    return GroupTerms(
        loss=policy_loss + kl_beta * kl + jsd_weight * jsd,
        policy_loss=policy_loss.detach(),
        kl=kl.detach(),
        jsd=jsd.detach(),
        advantages=advantage,
        distillation=distillation,
        divergences=divergences.detach(),
    )
