"""The loss of every group of a micro-batch, as the configuration weighs its parts."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from masters_ray.config import Learner, Reward
from masters_ray.grpo import GroupTerms, Objective, OldPolicy, group_terms
from masters_ray.packing import PackedBatch


def objective(settings: Learner, reward: Reward) -> Objective:
    """The same weights as ``grpo`` takes them."""
    return Objective(
        alpha=reward.alpha,
        rho=reward.rho,
        least_spread=reward.least_spread,
        cut_answers=reward.cut_answers,
        policy_weight=settings.policy_weight,
        jsd_weight=settings.jsd_weight,
        kl_beta=settings.kl_beta,
        kl_estimator=settings.kl_estimator,
        clip_epsilon=settings.clip_epsilon,
        aggregation=settings.aggregation,
    )


def batch_terms(
    weights: Objective,
    batch: PackedBatch,
    new_logprobs: Tensor,
    divergences: Tensor,
    errors: Tensor,
    tokens_per_group: float,
    old: Sequence[OldPolicy] | None,
) -> list[GroupTerms]:
    """``grpo.group_terms`` of each group. new_logprobs, divergences, errors: [answer tokens of the batch], as
    ``hf.PackedStudent`` gives them; old: of each group, from the first update on this batch."""
    found = []
    for group in range(len(batch.layout.spans)):
        answers = batch.group_of == group
        tokens = answers[batch.answer_of]
        fresh = bool(batch.fresh[answers].all())
        found.append(
            group_terms(
                weights,
                new_logprobs=new_logprobs[tokens],
                reference_logprobs=batch.reference_logprobs[tokens],
                token_jsd=divergences[tokens],
                token_jsd_error=errors[tokens],
                answer_of=batch.answer_of[tokens] - batch.answer_of[tokens].min(),
                accuracy=batch.accuracy[answers],
                reasoning=batch.reasoning[answers],
                tokens_per_group=tokens_per_group,
                cut=batch.cut[answers],
                behaviour_logprobs=batch.behaviour_logprobs[tokens] if fresh else None,
                old=old[group] if old else None,
            )
        )
    return found
