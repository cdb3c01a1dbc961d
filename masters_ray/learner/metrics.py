"""What the workers report of a step: sums over groups that all of them add up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from masters_ray.grpo import GroupTerms
from masters_ray.learner.agreement import row_gaps
from masters_ray.learner.job import GroupRewards
from masters_ray.packing import PackedBatch
from masters_ray.records import RolloutGroup


@dataclass(frozen=True, kw_only=True)
class StepTotals:
    """A step over all workers."""

    means: dict[str, float]
    """Fields of StepMetrics that are means over groups."""
    answer_tokens: int
    padding: int
    """Tokens of padding."""
    operations: float
    """Floating-point operations."""
    behaviour_gap: float
    """Mean distance of the learner's log-probabilities to the writing student's, nats per token of fresh groups."""
    gaps: Tensor
    """The same as ``agreement.row_gaps``, [groups, 3]; 0 for groups that are not fresh."""


class StepTally:
    """What one worker adds up over the micro-batches of a step."""

    def __init__(self, groups: int) -> None:
        """groups: of the step, over all workers."""
        self._sums = dict.fromkeys(_MEANS, 0.0)
        self._answer_tokens = self._padding = 0
        self._gaps = torch.zeros(groups, 3, dtype=torch.float64)
        self.losses = torch.zeros(groups, dtype=torch.float64)
        """[groups of the step], each where it stands in the step; 0 for other workers' groups."""
        self.rewards: list[GroupRewards] = []
        """Of this worker's groups."""

    def add(
        self,
        groups: Sequence[RolloutGroup],
        indices: list[int],
        terms: Sequence[GroupTerms],
        batch: PackedBatch,
        new_logprobs: Tensor,
    ) -> None:
        """A micro-batch of this worker's own groups, ``indices`` of the step. new_logprobs: [answer tokens]"""
        for term in terms:
            for name, value in _MEANS.items():
                self._sums[name] += float(value(term))
        self._answer_tokens += len(batch.targets)
        self._padding += batch.layout.padding
        fresh = torch.tensor([group.version is not None for group in groups]).unsqueeze(-1)
        self._gaps[indices] = row_gaps(new_logprobs, batch.behaviour_logprobs, batch) * fresh
        self.losses[indices] = torch.stack([term.loss.detach().double().cpu() for term in terms])
        self.rewards += [_rewards(group, one) for group, one in zip(groups, terms, strict=True)]

    def joined(self, over_workers: Callable[[Tensor], Tensor], operations: int) -> StepTotals:
        """All workers' tallies. operations: floating-point operations that this worker has spent on the step."""
        own = [*self._sums.values(), self._answer_tokens, self._padding, operations]
        *sums, answer_tokens, padding, operations_of_all = over_workers(torch.tensor(own, dtype=torch.float64)).tolist()
        gaps = over_workers(self._gaps)
        gap, fresh = gaps[:, :2].sum(0).tolist()
        return StepTotals(
            means={name: value / len(self.losses) for name, value in zip(_MEANS, sums, strict=True)},
            answer_tokens=round(answer_tokens),
            padding=round(padding),
            operations=operations_of_all,
            behaviour_gap=gap / fresh if fresh else 0.0,
            gaps=gaps,
        )


_MEANS: dict[str, Callable[[GroupTerms], Tensor | float]] = {
    "loss": lambda term: term.loss.detach(),
    "policy_loss": lambda term: term.policy_loss,
    "kl": lambda term: term.kl,
    "jsd": lambda term: term.jsd,
    "jsd_error_bound": lambda term: term.jsd_error,
    "accuracy_reward": lambda term: term.accuracy.mean(),
    "distillation_reward": lambda term: term.distillation.mean(),
    "advantage_spread": lambda term: term.advantages.std(correction=0),
    "flat_groups": lambda term: float(not term.advantages.any()),
    "clipped": lambda term: term.clipped,
}


def _rewards(group: RolloutGroup, terms: GroupTerms) -> GroupRewards:
    return GroupRewards(
        stage=group.stage,
        position=group.position,
        divergences=terms.divergences.tolist(),
        distillation=terms.distillation.tolist(),
        advantages=terms.advantages.tolist(),
        version=group.version,
    )
