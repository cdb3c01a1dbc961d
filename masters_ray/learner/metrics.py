"""Sums a step's metrics over workers: each worker fills the rows of its groups in one table, then all are added."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from masters_ray.learner.agreement import row_gaps
from masters_ray.learner.collate import MicroBatch
from masters_ray.learner.job import GroupRewards
from masters_ray.method.grpo import LossOutputs


@dataclass(frozen=True, kw_only=True)
class StepTotals:
    losses: list[float]  # of each group
    metrics: dict[str, float]  # of StepMetrics: means over groups; logprob_mismatch: over the tokens of fresh groups
    capacity: float  # tokens that all workers process if each round is filled to its longest micro-batch
    operations: float
    rewards: list[GroupRewards]  # of this worker's first two groups
    gaps: Tensor  # [groups, 3], ``agreement.row_gaps`` of learner and behaviour policy; 0 for groups that are not fresh


def step_totals(
    groups: int,
    made: Sequence[tuple[MicroBatch, LossOutputs, Tensor]],
    over_workers: Callable[[Tensor], Tensor],
    operations: int,
    *,
    rank: int,
    workers: int,
) -> StepTotals:
    """Returns the totals of a step of ``groups`` groups. made: this worker's micro-batch of each round, its outputs and
    its answer tokens' log-probs; of a dummy only the length counts. over_workers: sums. operations: this worker's."""
    names = list(made[0][1].metrics)
    table = torch.zeros(groups, len(names) + 3, dtype=torch.float64)
    work = torch.zeros(1 + len(made), workers, dtype=torch.float64)
    work[:, rank] = torch.tensor([operations, *(micro.batch.layout.length for micro, *_ in made)])
    rewards: list[GroupRewards] = []
    for micro, outputs, logprobs in made:
        if micro.indices:
            gaps = row_gaps(logprobs.cpu(), micro.batch.behaviour_logprobs, micro.batch)
            gaps[[group.version is None for group in micro.groups]] = 0.0
            metrics = torch.stack([values.double().cpu() for values in outputs.metrics.values()], 1)
            table[micro.indices] = torch.cat([metrics, gaps], 1)
            rewards += _rewards(micro, outputs)
    columns, work = over_workers(table), over_workers(work)
    gaps = columns[:, len(names) :]
    distance, tokens, _ = gaps.sum(0).tolist()
    means = dict(zip(names, columns.mean(0).tolist(), strict=False))
    return StepTotals(
        losses=columns[:, names.index("loss")].tolist(),
        metrics=means | {"logprob_mismatch": distance / tokens if tokens else 0.0},
        capacity=float(work[1:].amax(1).sum()) * workers,
        operations=float(work[0].sum()),
        rewards=rewards[:2],
        gaps=gaps,
    )


def _rewards(micro: MicroBatch, outputs: LossOutputs) -> list[GroupRewards]:
    sizes = [len(group.answers) for group in micro.groups]
    columns = (outputs.divergences, outputs.distillation, outputs.old.advantages)
    rows = zip(micro.groups, *(one.split(sizes) for one in columns), strict=True)
    return [
        GroupRewards(
            stage=group.stage,
            position=group.position,
            divergences=divergences.tolist(),
            distillation=distillation.tolist(),
            advantages=advantages.tolist(),
            version=group.version,
        )
        for group, divergences, distillation, advantages in rows
    ]
