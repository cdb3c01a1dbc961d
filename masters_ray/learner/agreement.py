"""Learner and engine must give the same log-probabilities where both hold the same student: row by row, for a picture
that one of them reads otherwise moves its own row's, and hardly a mean over many."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pyarrow as pa
import torch
from torch import Tensor

from masters_ray import store
from masters_ray.config import Learner
from masters_ray.errors import LearnerError
from masters_ray.learner.feed import Part, Step
from masters_ray.packing import PackedBatch
from masters_ray.records import LogprobMismatch

_LARGEST_GAP = {"float32": 0.01, "bfloat16": 0.1, "float16": 0.1}
"""Nats: mean distance over a row's answer tokens, by the coarser number format of the two (docs/LEARNER.md has the
measurements)."""
_ROWS = 64
"""Of a stage that are compared."""
_FROM_A_SHARD = 16
_FEW = 0.01
"""Share of the compared rows that may be further apart than the bound and are left out; a single one always may."""
_CAUSES = (
    "Did the student's checkpoint, its processor files or chat template change since the rollouts were made, or the "
    "pictures, or how they are opened? Are start or end tokens other ones? Otherwise the learner does not run this "
    "model as vLLM does: its kernels or number format (try student.engine.enforce_eager=true, or dtype=float32 for "
    "both), quantised weights, sliding windows or recurrent layers, which packed sequences do not support. If the "
    "model is right and only its rounding is this coarse, raise learner.max_logprob_gap."
)


def largest_gap(settings: Learner, engine_dtype: str) -> float:
    """Nats per token: how far a row of learner and engine may be apart."""
    if settings.max_logprob_gap is not None:
        return settings.max_logprob_gap
    return max(_LARGEST_GAP[settings.dtype], _LARGEST_GAP[engine_dtype])


def sample(folder: store.Where) -> pa.Table:
    """At least 64 rows of a finished store, or all, from shards all over it: always the same."""
    names = store.shard_names(folder)
    each = max(_FROM_A_SHARD, -(-_ROWS // max(1, len(names))))
    taken: list[pa.Table] = [store.SCHEMA.empty_table()]
    for index in _spread(len(names)):
        if sum(map(len, taken)) >= _ROWS:
            break
        rows = store.read_shard(folder, names[index])
        count = min(each, len(rows))
        taken.append(rows.take(pa.array([place * len(rows) // count for place in range(count)], pa.int64())))
    return pa.concat_tables(taken)


def _spread(count: int) -> list[int]:
    """0 … count − 1, the first few of them spread over all: 0, then the one in the middle, then those between."""
    halves = (int(f"{number:b}"[::-1], 2) / 2 ** number.bit_length() for number in range(1, 2 * count))
    return list(dict.fromkeys([0, *(int(place * count) for place in halves)])) if count else []


def row_gaps(new: Tensor, old: Tensor, batch: PackedBatch) -> Tensor:
    """float64 [groups, 3] on the CPU: of each group the summed distance of two log-probabilities of its answer tokens,
    their number, the largest distance. new, old: [answer tokens]"""
    distance = (new.detach() - old).abs().double().cpu()
    row, rows = batch.group_of[batch.answer_of].cpu(), len(batch.layout.spans)
    nothing = torch.zeros(rows, dtype=torch.float64)
    sums, most = nothing.index_add(0, row, distance), nothing.scatter_reduce(0, row, distance, "amax")
    return torch.stack([sums, torch.bincount(row, minlength=rows).double(), most], -1)


def compared(
    part: Part,
    logprobs: Callable[[PackedBatch], Tensor],
    over_workers: Callable[[Tensor], Tensor],
    bound: float,
) -> tuple[LogprobMismatch, dict[int, str]] | None:
    """How far the rows of a stage's ``sample`` are from the stored reference log-probabilities, and why the learner
    shall do without some of them, by position; None when there is nothing to compare. Every worker must call it
    together.

    logprobs: the untrained student's of a batch's answer tokens; over_workers: sums over all workers. Raises
    LearnerError when a worker can read none of the rows, or when too many are further apart than ``bound``.
    """
    step = part.step
    idle = over_workers(torch.tensor([float(not part.micro_batches)]))
    if idle.any():
        if len(step.table) <= 1:
            return None
        reason = next((f"{row.row}, {row.reason}" for row in part.unreadable.values()), "its own words tell")
        raise LearnerError(f"a worker can read none of {len(step.table)} rows of stage {step.plan.stage} ({reason})")
    gaps = torch.zeros(len(step.table), 3, dtype=torch.float64)
    for micro in part.micro_batches:
        own = logprobs(micro.batch)
        if not micro.filler:
            gaps[micro.indices] = row_gaps(own, micro.batch.reference_logprobs.to(own.device), micro.batch)
    rows, apart = apart_by_row(step, over_workers(gaps), bound)
    if not rows:
        return None
    worst = max(rows, key=lambda index: _order(rows[index][0]))
    ids, positions = step.table["id"].to_pylist(), step.table["position"].to_pylist()
    agreement = LogprobMismatch(
        stage=step.plan.stage,
        rows=len(rows),
        row=ids[worst],
        mean_gap=rows[worst][0],
        token_gap=max((row[1] for row in rows.values()), key=_order),
        bound=bound,
        apart=len(apart),
    )
    if len(apart) > max(1, int(_FEW * len(rows))):
        raise LearnerError(
            f"stage {agreement.stage}: the learner's log-probabilities of the untrained student differ from the "
            f"engine's by more than {bound:g} nats per token in {len(apart)} of {len(rows)} rows, most in {ids[worst]} "
            f"({agreement.mean_gap:.3g}, at one token {rows[worst][1]:.3g}). {_CAUSES}"
        )
    reasons = {
        positions[
            index
        ]: f"learner and engine are {rows[index][0]:.3g} nats per token apart on it, more than {bound:g}; "
        "did its picture change since its rollouts were made?"
        for index in apart
    }
    return agreement, reasons


def apart_by_row(step: Step, gaps: Tensor, bound: float) -> tuple[dict[int, tuple[float, float]], list[int]]:
    """(mean and largest distance of the rows of a step that have tokens, those further apart than ``bound``).
    gaps: as ``row_gaps``, [rows of the step, 3]"""
    found = {index: (total / tokens, most) for index, (total, tokens, most) in enumerate(gaps.tolist()) if tokens}
    return found, [index for index, (mean, _) in found.items() if not mean <= bound]


def check_on_policy(step: Step, gaps: Tensor, bound: float) -> None:
    """Fresh answers of the very weights that learn from them must have the same log-probabilities in learner and
    engine. gaps: as ``row_gaps``, [rows of the step, 3]. Raises LearnerError when they differ by much."""
    versions: Sequence[int] = step.table["version"].to_pylist()
    rows, apart = apart_by_row(step, gaps, bound)
    apart = [index for index in apart if versions[index] == step.number - 1]
    if len(apart) > max(1, int(_FEW * len(rows))) or len(apart) == len(rows) > 0:
        worst = max(apart, key=lambda index: _order(rows[index][0]))
        raise LearnerError(
            f"step {step.number}: the learner's log-probabilities of fresh answers differ from the engine's by more "
            f"than {bound:g} nats per token in {len(apart)} rows, most in {step.table['id'][worst].as_py()} "
            f"({rows[worst][0]:.3g}), though both hold the same weights. The engine does not compute what it was sent: "
            "try student.engine.enforce_eager=true or another dtype, or learn offline with rollout.online_fraction=0."
        )


def told(found: LogprobMismatch) -> str:
    """For the person who waits."""
    return (
        f"stage {found.stage}: learner and engine agree on {found.rows} rows to {found.mean_gap:.1e} nats per token "
        f"(the furthest, {found.row}; {found.bound:g} is allowed)"
    )


def _order(gap: float) -> float:
    return math.inf if math.isnan(gap) else gap
