"""Group relative policy optimisation on one group (METHOD 6; appendix section B, eq. 9 to 11)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from masters_ray.config import Aggregation, CutAnswers, KlEstimator
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


def kl_estimates(estimator: KlEstimator, new_logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """Schulman's estimates of KL(new ‖ reference) per sampled token, with d = reference − new: k1 = −d, k2 = d²/2,
    k3 = exp(d) − d − 1. k1 is unbiased but pulls nowhere: the mean of its gradient over samples is zero."""
    difference = reference_logprobs - new_logprobs
    if estimator == "k1":
        return -difference
    if estimator == "k2":
        return difference**2 / 2
    return difference.exp() - difference - 1


def clipped_objective(ratio: Tensor, advantage: Tensor, clip_epsilon: float) -> Tensor:
    """min(ratio·A, clip(ratio, 1 ± ε)·A) per token (appendix eq. 9), ratio = exp(new − old). All arguments [tokens]."""
    return torch.minimum(ratio * advantage, ratio.clamp(1 - clip_epsilon, 1 + clip_epsilon) * advantage)


def is_clipped(ratio: Tensor, advantage: Tensor, clip_epsilon: float) -> Tensor:
    """bool [tokens]: the ratio has gone as far as it may in the direction in which the advantage pushes it."""
    return ((advantage > 0) & (ratio > 1 + clip_epsilon)) | ((advantage < 0) & (ratio < 1 - clip_epsilon))


@dataclass(frozen=True, kw_only=True)
class Objective:
    """How rewards and losses are weighed (METHOD 4 and 6; the paper's values)."""

    alpha: float = 1.0
    """Of the distillation reward, beside the accuracy reward."""
    rho: float = 0.0
    """Of the reasoning reward."""
    least_spread: float = 0.0
    """Nats; divergences of a group that lie closer together make no distillation reward."""
    cut_answers: CutAnswers = "judge"
    """What answers get that were cut at their longest length: their rewards, R_acc = R_rea = 0, or advantage 0."""
    policy_weight: float = 1.0
    """Of L_GRPO; 0 leaves the divergence alone."""
    jsd_weight: float = 1.0
    kl_beta: float = 0.1
    kl_estimator: KlEstimator = "k3"
    clip_epsilon: float = 0.2
    aggregation: Aggregation = "answer"
    """answer: every answer of a group weighs the same; token: every answer token of a step does."""


@dataclass(frozen=True, kw_only=True)
class OldPolicy:
    """What the first update on a group is compared with, and what the later ones are."""

    logprobs: Tensor
    """[tokens], of the student that wrote in an online iteration, otherwise of the one before the first update."""
    advantages: Tensor
    """[G]"""


@dataclass(frozen=True, kw_only=True)
class GroupTerms:
    """Loss and its parts for one group; every field is a scalar tensor unless said otherwise."""

    loss: Tensor
    """policy_weight · L_GRPO + jsd_weight · JSD; the only field with a gradient."""
    policy_loss: Tensor
    """The clipped objective, negative."""
    kl: Tensor
    """The estimate against the reference policy, in nats."""
    jsd: Tensor
    """In nats."""
    jsd_error: Tensor
    """Most that ``jsd`` can be below the divergence over the whole vocabulary, in nats."""
    clipped: Tensor
    """Fraction of the tokens whose ratio is cut off, so that the policy gradient does not move them."""
    old: OldPolicy
    """For later updates on the group."""
    accuracy: Tensor
    """[G], R_acc as it counts"""
    distillation: Tensor
    """[G], R_distill"""
    divergences: Tensor
    """[G], D_j in nats"""

    @property
    def advantages(self) -> Tensor:
        """[G]"""
        return self.old.advantages


def answer_means(per_token: Tensor, answer_of: Tensor, answers: int) -> Tensor:
    """Mean over the tokens of each answer: [tokens] with the answer of each token → [answers]."""
    totals = per_token.new_zeros(answers).index_add(0, answer_of, per_token)
    return totals / torch.bincount(answer_of, minlength=answers)


def group_terms(
    objective: Objective,
    *,
    new_logprobs: Tensor,
    reference_logprobs: Tensor,
    token_jsd: Tensor,
    token_jsd_error: Tensor,
    answer_of: Tensor,
    accuracy: Tensor,
    reasoning: Tensor,
    tokens_per_group: float,
    cut: Tensor | None = None,
    behaviour_logprobs: Tensor | None = None,
    old: OldPolicy | None = None,
) -> GroupTerms:
    """The Masters loss of one group (METHOD 6): −mean_j mean_t [ratio·A_j − β·KL_t] + mean_j D_j.

    new_logprobs, reference_logprobs, token_jsd, and what that leaves out at most, token_jsd_error: [tokens] over all
    answers, each belonging to answer ``answer_of`` (0 … G−1); accuracy, reasoning: [G]. The advantages come from R_acc
    + alpha · R_distill + rho · R_rea, detached. tokens_per_group: answer tokens of the step over its groups, by which
    token sums are divided when every token weighs the same. cut: bool [G], answers that were cut; default: none.
    behaviour_logprobs: [tokens], of an older student that wrote the answers in an online iteration, to which the ratio
    is taken and clipped (eq. 9); default: the ratio of the first update is 1 (eq. 11). old: of the first update on this
    group; default: this is the first.
    """
    answers = accuracy.shape[0]

    def aggregated(per_token: Tensor) -> Tensor:
        if objective.aggregation == "token":
            return per_token.sum() / tokens_per_group
        return answer_means(per_token, answer_of, answers).mean()

    divergences = answer_means(token_jsd, answer_of, answers).detach()
    distillation = distillation_rewards(divergences, objective.least_spread)
    if cut is not None and objective.cut_answers == "zero":
        accuracy, reasoning = accuracy.masked_fill(cut, 0.0), reasoning.masked_fill(cut, 0.0)
    if old is None:
        relative = advantages(accuracy + objective.alpha * distillation + objective.rho * reasoning)
        if cut is not None and objective.cut_answers == "mask":
            relative = relative.masked_fill(cut, 0.0)
        before = new_logprobs.detach() if behaviour_logprobs is None else behaviour_logprobs
        old = OldPolicy(logprobs=before, advantages=relative)
    advantage = old.advantages[answer_of]
    ratio = (new_logprobs - old.logprobs).exp()
    policy_loss = -aggregated(clipped_objective(ratio, advantage, objective.clip_epsilon))
    kl = aggregated(kl_estimates(objective.kl_estimator, new_logprobs, reference_logprobs))
    jsd = aggregated(token_jsd)
    grpo = policy_loss + objective.kl_beta * kl
    return GroupTerms(
        loss=objective.policy_weight * grpo + objective.jsd_weight * jsd,
        policy_loss=policy_loss.detach(),
        kl=kl.detach(),
        jsd=jsd.detach(),
        jsd_error=aggregated(token_jsd_error).detach(),
        clipped=is_clipped(ratio.detach(), advantage, objective.clip_epsilon).float().mean(),
        old=old,
        accuracy=accuracy,
        distillation=distillation,
        divergences=divergences,
    )
