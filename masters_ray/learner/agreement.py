"""Compares the learner's and the engine's log-probabilities of the same tokens under the same weights, row by row: a
picture that the two read differently changes those of its row, but hardly a mean over many rows."""

import math
from collections.abc import Callable

import pyarrow as pa
import torch
from torch import Tensor

from masters_ray import store
from masters_ray.config import Learner
from masters_ray.errors import LearnerError
from masters_ray.kernels.packing import PackedBatch
from masters_ray.learner.batches import Step
from masters_ray.learner.collate import WorkerStep
from masters_ray.records import LogprobMismatch

Mismatch = tuple[LogprobMismatch, dict[tuple[int, int], str]]
"""With (stage, position) → why the row must not be trained on, for each row above the bound."""
_EXACT, _COARSE = 0.01, 0.1
"""Largest mean absolute difference over a row's answer tokens, nats, in float32 and otherwise (docs/LEARNER.md)."""
_ROWS, _FROM_A_SHARD = 64, 16
_FEW = 0.01  # fraction of the compared rows that may exceed the bound; a single row always may
_UNTRAINED = (
    "Did checkpoint, processor files, chat template, start or end tokens, or the pictures change since the rollouts "
    "were made? Otherwise vLLM runs this model in another way: try student.engine.enforce_eager=true, or dtype=float32 "
    "for both. If only its rounding is this coarse, raise learner.max_logprob_gap."
)
_UNFIT = "learner and engine are {:.3g} nats per token apart on it, more than {:g}; did its picture change since?"
_ON_POLICY = "Both hold the same weights: try student.engine.enforce_eager=true, or rollout.online_fraction=0."


def largest_gap(settings: Learner, engine_dtype: str) -> float:
    """Returns the largest difference allowed between learner and engine on a row, in nats per token."""
    usual = _EXACT if settings.dtype == engine_dtype == "float32" else _COARSE
    return usual if settings.max_logprob_gap is None else settings.max_logprob_gap


def sample(folder: store.Where) -> pa.Table:
    """Returns at least 64 rows of a finished store, or all if fewer, from shards spread over it. Deterministic."""
    names = store.shard_names(folder)
    stride = -(-len(names) * _FROM_A_SHARD // _ROWS)
    each = max(_FROM_A_SHARD, -(-_ROWS // max(1, len(names))))
    taken = store.SCHEMA.empty_table()
    for index in sorted(range(len(names)), key=lambda index: index % stride):
        if len(taken) < _ROWS:
            rows = store.read_shard(folder, names[index])
            count = min(each, len(rows))
            places = [place * len(rows) // count for place in range(count)]
            taken = pa.concat_tables([taken, rows.take(pa.array(places, pa.int64()))])
    return taken


def row_gaps(new: Tensor, old: Tensor, batch: PackedBatch) -> Tensor:
    """Returns float64 [groups, 3] on the CPU: per group the sum of |new − old| over its answer tokens, the number of
    tokens, and the largest |new − old|. new, old: log-probabilities, [answer tokens]."""
    distance = (new.detach() - old).abs().double().cpu()
    row, rows = batch.group_of[batch.answer_of].cpu(), int(batch.group_of[-1]) + 1
    nothing = torch.zeros(rows, dtype=torch.float64)
    sums, most = nothing.index_add(0, row, distance), nothing.scatter_reduce(0, row, distance, "amax")
    return torch.stack([sums, torch.bincount(row, minlength=rows).double(), most], -1)


def compare(
    part: WorkerStep, logprobs: Callable[[PackedBatch], Tensor], over_workers: Callable[[Tensor], Tensor], bound: float
) -> Mismatch | None:
    """Returns the mismatch of a stage's ``sample``: its stored reference log-probabilities against ``logprobs``, which
    computes the untrained student's for a batch. All workers must call this together, each with its part of the sample.

    over_workers: sums over all workers. Returns None for a sample of a single row that cannot be read. Raises
    LearnerError when a worker can read no row of a larger one, or when too many rows exceed ``bound``.
    """
    rows, stage = len(part.step.table), f"stage {part.step.plan.stage}"
    if over_workers(torch.tensor([float(not part.micro_batches)])).any():
        if rows <= 1:
            return None
        example = next((f": {row.row}, {row.reason}" for row in part.unreadable.values()), "")
        raise LearnerError(f"a worker can read none of {rows} rows of {stage}{example}")
    gaps = torch.zeros(rows, 3, dtype=torch.float64)
    for micro in part.micro_batches:
        with torch.no_grad():
            own = logprobs(micro.batch)
        if micro.indices:
            gaps[micro.indices] = row_gaps(own, micro.batch.reference_logprobs.to(own.device), micro.batch)
    return _mismatch(part.step, over_workers(gaps), bound, f"{stage}: the untrained student's answers", _UNTRAINED)


def check_fresh(step: Step, gaps: Tensor, bound: float) -> None:
    """Raises LearnerError when too many of a step's fresh rows exceed ``bound``. Compares those that were written by
    the weights at the start of this step. gaps: as ``row_gaps`` returns, [rows of the step, 3]."""
    is_own = torch.tensor([[version == step.number - 1] for version in step.table["version"].to_pylist()])
    _mismatch(step, torch.where(is_own, gaps, 0.0), bound, f"step {step.number}: fresh answers", _ON_POLICY)


def _mismatch(step: Step, gaps: Tensor, bound: float, of: str, remedy: str) -> Mismatch | None:
    """gaps: as ``row_gaps`` returns, 0 for rows that were not compared. Returns None when none was."""
    sums, tokens, most = gaps.unbind(-1)
    rows = int(tokens.count_nonzero())
    if not rows:
        return None
    means = torch.where(tokens > 0, (sums / tokens).nan_to_num(nan=math.inf), 0.0).tolist()
    ids, positions = step.table["id"].to_pylist(), step.table["position"].to_pylist()
    apart = [index for index, mean in enumerate(means) if mean > bound]
    worst = max(range(len(means)), key=means.__getitem__)
    if len(apart) > max(1, int(_FEW * rows)) or len(apart) == rows:
        raise LearnerError(
            f"{of}: the learner's log-probabilities differ from the engine's by more than {bound:g} nats per token in "
            f"{len(apart)} of {rows} rows, most in {ids[worst]} ({means[worst]:.3g}, at one token "
            f"{float(most[worst]):.3g}). {remedy}"
        )
    found = LogprobMismatch(
        stage=step.plan.stage,
        rows=rows,
        row=ids[worst],
        mean_gap=means[worst],
        token_gap=float(most.nan_to_num(nan=math.inf).max()),
        bound=bound,
        apart=len(apart),
    )
    return found, {(found.stage, positions[index]): _UNFIT.format(means[index], bound) for index in apart}
