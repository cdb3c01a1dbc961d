"""What the workers report of a step: a row of numbers for each of its groups, which all of them add up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from masters_ray.learner.agreement import row_gaps
from masters_ray.learner.collate import MicroBatch
from masters_ray.learner.job import GroupRewards
from masters_ray.method.grpo import LossOutputs

_SHOWN_GROUPS = 2
"""Groups of a step whose rewards are told."""


@dataclass(frozen=True, kw_only=True)
class StepTotals:
    """A step over all workers."""

    losses: list[float]
    """Of its groups."""
    metrics: dict[str, float]
    """Fields of StepMetrics: means over the groups or, of logprob_mismatch, over the tokens of fresh groups."""
    padding: float
    """Tokens of padding."""
    operations: float
    """Floating-point operations."""
    rewards: list[GroupRewards]
    """Of some of this worker's groups."""
    gaps: Tensor
    """As ``agreement.row_gaps``, [groups, 3], of the learner and the student that wrote; 0 for groups that are not
    fresh."""


def step_totals(
    groups: int,
    made: Sequence[tuple[MicroBatch, LossOutputs, Tensor]],
    over_workers: Callable[[Tensor], Tensor],
    operations: int,
) -> StepTotals:
    """Of a step of so many groups over all workers. made: this worker's micro-batches with their answer tokens'
    log-probabilities; a dummy leaves no trace. operations: that this worker has spent on the step."""
    names = list(made[0][1].metrics)
    table = torch.zeros(groups, len(names) + 3, dtype=torch.float64)
    own = [one for one in made if one[0].indices]
    for micro, outputs, logprobs in own:
        gaps = row_gaps(logprobs.cpu(), micro.batch.behaviour_logprobs, micro.batch)
        gaps[[group.version is None for group in micro.groups]] = 0.0
        metrics = torch.stack([values.double().cpu() for values in outputs.metrics.values()], 1)
        table[micro.indices] = torch.cat([metrics, gaps], 1)
    columns = over_workers(table)
    sums = torch.tensor([sum(micro.batch.layout.padding for micro, *_ in own), operations], dtype=torch.float64)
    padding, all_operations = over_workers(sums).tolist()
    gaps = columns[:, len(names) :]
    distance, tokens, _ = gaps.sum(0).tolist()
    means = dict(zip(names, columns.mean(0).tolist(), strict=False))
    return StepTotals(
        losses=columns[:, names.index("loss")].tolist(),
        metrics=means | {"logprob_mismatch": distance / tokens if tokens else 0.0},
        padding=padding,
        operations=all_operations,
        rewards=[rewards for micro, outputs, _ in own for rewards in _rewards(micro, outputs)][:_SHOWN_GROUPS],
        gaps=gaps,
    )


def _rewards(micro: MicroBatch, outputs: LossOutputs) -> list[GroupRewards]:
    sizes = [len(group.answers) for group in micro.groups]
    of_answers = outputs.divergences, outputs.distillation, outputs.old.advantages
    return [
        GroupRewards(
            stage=group.stage,
            position=group.position,
            divergences=divergences.tolist(),
            distillation=distillation.tolist(),
            advantages=advantages.tolist(),
            version=group.version,
        )
        for group, divergences, distillation, advantages in zip(
            micro.groups, *(one.split(sizes) for one in of_answers), strict=True
        )
    ]
