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

MEANS = (
    "loss",
    "policy_loss",
    "kl",
    "jsd",
    "jsd_error_bound",
    "accuracy_reward",
    "distillation_reward",
    "advantage_spread",
    "flat_groups",
    "clipped",
)
"""Fields of StepMetrics that are means over groups."""


class Tally:
    """What one worker adds up over the micro-batches of a step."""

    def __init__(self, groups: int) -> None:
        self._sums = torch.zeros(len(MEANS), dtype=torch.float64)
        self._counts = torch.zeros(3, dtype=torch.float64)
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
        self._sums += _group_sums(terms, batch)
        self._counts += torch.tensor([len(batch.targets), batch.layout.padding, 0.0], dtype=torch.float64)
        fresh = torch.tensor([group.version is not None for group in groups]).unsqueeze(-1)
        self._gaps[indices] = row_gaps(new_logprobs, batch.behaviour_logprobs, batch) * fresh
        self.losses[indices] = torch.stack([term.loss.detach().double().cpu() for term in terms])
        self.rewards += [_rewards(group, one) for group, one in zip(groups, terms, strict=True)]

    def count_operations(self, operations: int) -> None:
        """Floating-point operations that this worker has spent on the step."""
        self._counts[2] += operations

    def joined(self, over_workers: Callable[[Tensor], Tensor]) -> Totals:
        """All workers' tallies."""
        values = over_workers(torch.cat([self._sums, self._counts])).tolist()
        means = {name: value / len(self.losses) for name, value in zip(MEANS, values, strict=False)}
        answer_tokens, padding, operations = values[len(MEANS) :]
        gaps = over_workers(self._gaps)
        gap, fresh = gaps[:, :2].sum(0).tolist()
        return Totals(
            means=means,
            answer_tokens=round(answer_tokens),
            padding=round(padding),
            operations=operations,
            behaviour_gap=gap / fresh if fresh else 0.0,
            gaps=gaps,
        )


@dataclass(frozen=True, kw_only=True)
class Totals:
    """A step over all workers."""

    means: dict[str, float]
    """MEANS → mean over groups."""
    answer_tokens: int
    padding: int
    """Tokens of padding."""
    operations: float
    """Floating-point operations."""
    behaviour_gap: float
    """Mean distance of the learner's log-probabilities to the writing student's, nats per token of fresh groups."""
    gaps: Tensor
    """The same as ``agreement.row_gaps``, [groups, 3]; 0 for groups that are not fresh."""


def _group_sums(terms: Sequence[GroupTerms], batch: PackedBatch) -> Tensor:
    rows = [
        (
            term.loss.detach(),
            term.policy_loss,
            term.kl,
            term.jsd,
            term.jsd_error,
            term.accuracy.mean(),
            term.distillation.mean(),
            term.advantages.std(correction=0),
            float(not term.advantages.any()),
            term.clipped,
        )
        for term in terms
    ]
    return torch.tensor([[float(value) for value in row] for row in rows], dtype=torch.float64).sum(0)


def _rewards(group: RolloutGroup, terms: GroupTerms) -> GroupRewards:
    return GroupRewards(
        stage=group.stage,
        position=group.position,
        divergences=terms.divergences.tolist(),
        distillation=terms.distillation.tolist(),
        advantages=terms.advantages.tolist(),
        version=group.version,
    )
