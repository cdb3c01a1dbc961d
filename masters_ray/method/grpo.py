"""Rewards and the Masters loss: GRPO and the divergence (METHOD 4 and 6; appendix B, eq. 9 to 11)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from masters_ray.config import KlEstimator, Learner, Reward

if TYPE_CHECKING:
    from masters_ray.kernels.packing import PackedBatch

RESOLUTION = 1e-6
"""Precision to which divergences are compared, in nats. Divergences of equal answers differ by rounding, which scaling
to [0, 1] would amplify in a group whose divergences lie close together."""
EPSILON = 1e-6  # ε that is added to the standard deviation of the rewards
FLAT = 1e-4  # a group with a smaller reward range has advantages 0: rounding noise must not become a full-size gradient


@dataclass(frozen=True, kw_only=True)
class OldPolicy:
    """Old log-probs and advantages, fixed in the first update on a batch and used in all updates on it."""

    logprobs: Tensor
    """[tokens]: of the behaviour policy for fresh answers, otherwise of the student before the first update."""
    advantages: Tensor  # [answers]


@dataclass(frozen=True, kw_only=True)
class LossOutputs:
    loss: Tensor
    """[groups]: policy_weight · (−clipped objective + kl_beta · KL) + jsd_weight · JSD; only this has a gradient."""
    metrics: dict[str, Tensor]  # field of StepMetrics → [groups], whose mean over groups is that field
    old: OldPolicy
    distillation: Tensor  # [answers], R_distill
    divergences: Tensor  # [answers], D_j in nats


def distillation_rewards(divergences: Tensor, least_spread: float = 0.0) -> Tensor:
    """Returns R_distill, [G]: 1 for the answer with the smallest divergence, 0 for the largest, linear in between.

    divergences: [G], mean JSD of each answer in nats. A range (max − min) of 0, or of at most ``least_spread`` nats,
    gives 0 for all. The result has no gradient.

    Example: ``[0.1, 0.3, 0.2]`` gives ``[1.0, 0.0, 0.5]``, and zeros with a least spread of 0.2.
    """
    divergences = (divergences.detach().double() / RESOLUTION).round()
    spread = divergences.max() - divergences.min()
    if spread <= round(least_spread / RESOLUTION):
        return torch.zeros_like(divergences, dtype=torch.float32)
    return ((divergences.max() - divergences) / spread).float()


def advantages(rewards: Tensor) -> Tensor:
    """Returns A_j = (R_j − mean R) / (std R + ε) over the G answers of one question, with the population's standard
    deviation: ``[2., 0.]`` gives ``[1., -1.]`` up to ε. A flat group (max − min < FLAT) gives zeros."""
    if rewards.max() - rewards.min() < FLAT:
        return torch.zeros_like(rewards)
    return (rewards - rewards.mean()) / (rewards.std(correction=0) + EPSILON)


def kl_estimates(estimator: KlEstimator, new_logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """Returns Schulman's estimate of KL(new ‖ reference) per sampled token, with d = reference − new: k1 = −d, k2 =
    d²/2, k3 = exp(d) − d − 1. k1 is unbiased but does not regularise: the expectation of its gradient is zero."""
    difference = reference_logprobs - new_logprobs
    if estimator == "k1":
        return -difference
    if estimator == "k2":
        return difference**2 / 2
    return difference.exp() - difference - 1


def clipped_objective(ratio: Tensor, advantage: Tensor, clip_epsilon: float) -> Tensor:
    """Returns min(ratio·A, clip(ratio, 1 ± ε)·A) per token (appendix eq. 9). ratio = exp(new − old), A: [tokens]. Where
    clipping is active the result is below ratio·A and has gradient 0."""
    return torch.minimum(ratio * advantage, ratio.clamp(1 - clip_epsilon, 1 + clip_epsilon) * advantage)


def segment_means(values: Tensor, segment_of: Tensor, segments: int) -> Tensor:
    """Returns the mean of each segment, [segments]. segment_of: the segment (0 … segments−1) of each value."""
    totals = values.new_zeros(segments).index_add(0, segment_of, values)
    return totals / torch.bincount(segment_of, minlength=segments)


def group_losses(
    learner: Learner,
    reward: Reward,
    batch: "PackedBatch",
    student: tuple[Tensor, Tensor, Tensor],
    tokens_per_group: float,
    old: OldPolicy | None = None,
) -> LossOutputs:
    """Returns each group's loss: −mean_j mean_t [ratio·A_j − β·KL_t] + mean_j D_j, before weights (METHOD 6).

    student: per answer token its log-prob, its JSD to the teacher and the JSD's error bound, as ``hf.PackedStudent``
    returns them. Advantages come from R_acc + alpha · R_distill + rho · R_rea, detached. The ratio is to the behaviour
    policy for fresh answers (eq. 9); otherwise it is 1 in the first update (eq. 11). tokens_per_group: the step's mean
    answer tokens per group, the divisor of token sums with ``learner.aggregation=token``. old: the result's ``old`` of
    the first update on this batch; None in the first update.
    """
    logprobs, token_jsd, token_jsd_error = student
    sizes = torch.bincount(batch.group_of).tolist()
    answers, groups, group_of_token = len(batch.group_of), len(sizes), batch.group_of[batch.answer_of]

    def by_group(function: Callable[[Tensor], Tensor], per_answer: Tensor) -> Tensor:
        return torch.cat([function(one) for one in per_answer.split(sizes)])

    def aggregated(per_token: Tensor) -> Tensor:
        """[tokens] → [groups]"""
        if learner.aggregation == "token":
            return per_token.new_zeros(groups).index_add(0, group_of_token, per_token) / tokens_per_group
        return segment_means(segment_means(per_token, batch.answer_of, answers), batch.group_of, groups)

    divergences = segment_means(token_jsd, batch.answer_of, answers).detach()
    distillation = by_group(lambda group: distillation_rewards(group, reward.least_spread), divergences)
    accuracy, reasoning = batch.accuracy, batch.reasoning
    if reward.cut_answers == "zero":
        accuracy, reasoning = accuracy.masked_fill(batch.cut, 0.0), reasoning.masked_fill(batch.cut, 0.0)
    if old is None:
        relative = by_group(advantages, accuracy + reward.alpha * distillation + reward.rho * reasoning)
        if reward.cut_answers == "mask":
            relative = relative.masked_fill(batch.cut, 0.0)
        before = torch.where(batch.fresh[batch.answer_of], batch.behaviour_logprobs, logprobs.detach())
        old = OldPolicy(logprobs=before, advantages=relative)
    advantage = old.advantages[batch.answer_of]
    ratio = (logprobs - old.logprobs).exp()
    objective = clipped_objective(ratio, advantage, learner.clip_epsilon)
    policy_loss = -aggregated(objective)
    kl = aggregated(kl_estimates(learner.kl_estimator, logprobs, batch.reference_logprobs))
    jsd = aggregated(token_jsd)
    loss = learner.policy_weight * (policy_loss + learner.kl_beta * kl) + learner.jsd_weight * jsd
    metrics = {
        "loss": loss,
        "policy_loss": policy_loss,
        "kl": kl,
        "jsd": jsd,
        "jsd_error_bound": aggregated(token_jsd_error),
        "accuracy_reward": segment_means(accuracy, batch.group_of, groups),
        "distillation_reward": segment_means(distillation, batch.group_of, groups),
        "advantage_std": by_group(lambda group: group.std(0, correction=0, keepdim=True), old.advantages),
        "zero_std_groups": by_group(lambda group: ~group.any(0, keepdim=True), old.advantages),
        "answer_length": segment_means(batch.answer_of.bincount(minlength=answers).float(), batch.group_of, groups),
        "cut_share": segment_means(batch.cut.float(), batch.group_of, groups),
        "clip_fraction": segment_means((objective < ratio * advantage).to(ratio.dtype), group_of_token, groups),
    }
    told = {name: value.detach() for name, value in metrics.items()}
    return LossOutputs(loss=loss, metrics=told, old=old, distillation=distillation, divergences=divergences)
