"""What the workers report of a step: a row of numbers for each of its groups, which all of them add up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from masters_ray.grpo import LossOutputs
from masters_ray.learner.agreement import row_gaps
from masters_ray.learner.collate import MicroBatch
from masters_ray.learner.job import GroupRewards

_SHOWN_GROUPS = 2
"""Groups of a step whose rewards are told."""


@dataclass(frozen=True, kw_only=True)
class StepTotals:
    """A step over all workers."""

    losses: list[float]
    """Of its groups."""
    metrics: dict[str, float]
    """Fields of StepMetrics: means over the groups or, of logprob_mismatch, over the tokens of fresh groups."""
    padding: int
    """Tokens of padding."""
    operations: float
    """Floating-point operations."""
    rewards: list[GroupRewards]
    """Of some of this worker's groups."""
    gaps: Tensor
    """As ``agreement.row_gaps``, [groups, 3], of the learner and the student that wrote; 0 for groups that are not
    fresh."""


class StepTally:
    """What one worker adds up over the micro-batches of a step."""

    def __init__(self, groups: int) -> None:
        """groups: of the step, over all workers."""
        self._metrics: dict[str, Tensor] = {}
        self._gaps = torch.zeros(groups, 3, dtype=torch.float64)
        self._padding = 0
        self._rewards: list[GroupRewards] = []

    def add(self, micro: MicroBatch, outputs: LossOutputs, new_logprobs: Tensor) -> None:
        """A micro-batch; a dummy leaves no trace. new_logprobs: [answer tokens]"""
        for name, values in outputs.metrics.items():
            column = self._metrics.setdefault(name, torch.zeros(len(self._gaps), dtype=torch.float64))
            if micro.indices:
                column[micro.indices] = values.double().cpu()
        if not micro.indices:
            return
        self._padding += micro.batch.layout.padding
        fresh = [index for index, group in enumerate(micro.groups) if group.version is not None]
        gaps = row_gaps(new_logprobs.cpu(), micro.batch.behaviour_logprobs, micro.batch)
        self._gaps[[micro.indices[index] for index in fresh]] = gaps[fresh]
        sizes = [len(group.answers) for group in micro.groups]
        of_answers = outputs.divergences, outputs.distillation, outputs.old.advantages
        for group, *numbers in zip(micro.groups, *(one.split(sizes) for one in of_answers), strict=True):
            divergences, distillation, advantages = (one.tolist() for one in numbers)
            self._rewards.append(
                GroupRewards(
                    stage=group.stage,
                    position=group.position,
                    divergences=divergences,
                    distillation=distillation,
                    advantages=advantages,
                    version=group.version,
                )
            )

    def joined(self, over_workers: Callable[[Tensor], Tensor], operations: int) -> StepTotals:
        """All workers' tallies. operations: floating-point operations that this worker has spent on the step."""
        columns = over_workers(torch.stack([*self._metrics.values(), *self._gaps.unbind(-1)]))
        padding, all_operations = over_workers(torch.tensor([self._padding, operations], dtype=torch.float64)).tolist()
        metrics = dict(zip(self._metrics, columns, strict=False))
        gaps = columns[len(metrics) :].T
        distance, tokens = gaps[:, :2].sum(0).tolist()
        means = {name: float(values.mean()) for name, values in metrics.items()}
        return StepTotals(
            losses=metrics["loss"].tolist(),
            metrics=means | {"logprob_mismatch": distance / tokens if tokens else 0.0},
            padding=round(padding),
            operations=all_operations,
            rewards=self._rewards[:_SHOWN_GROUPS],
            gaps=gaps,
        )
