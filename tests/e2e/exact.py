"""Replicas on real engines whose scores are told as the engine gives them, not as they are stored."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from masters_ray.config import Engine, MaskScope
from masters_ray.families import parts_in
from masters_ray.records import Answer, Problem, Scored
from masters_ray.replicas.actor import ReplicaActor
from masters_ray.replicas.model import ReplicaModel, ScoredBatch
from masters_ray.replicas.pool import Pool
from masters_ray.replicas.processes import Role
from masters_ray.replicas.spec import ReplicaSpec
from tests.builders import replica_spec

TOP_K = 16


class ExactModel(ReplicaModel):
    """Tokens are structs of lists: top_ids, top_logprobs and own."""

    def _stored(self, scored: Sequence[Scored]) -> pa.StructArray:
        columns = {name: [getattr(one.top, name).ravel() for one in scored] for name in ("top_ids", "top_logprobs")}
        columns["own"] = [one.own for one in scored]
        return pa.StructArray.from_arrays(list(map(pa.array, columns.values())), names=list(columns))


class ExactActor(ReplicaActor):
    def _load(self, spec: ReplicaSpec) -> None:
        self._model = ExactModel(spec)


Drawn = list[tuple[Answer, ...]]


def score(pool: Pool, problems: list[Problem], answers: Drawn) -> ScoredBatch:
    scored: ScoredBatch = pool.call("score", problems, [[one.token_ids for one in group] for group in answers])
    return scored


def top(scored: ScoredBatch, column: str) -> np.ndarray:
    """[tokens of all answers, TOP_K]"""
    flat: np.ndarray = scored.tokens.field(column).flatten().to_numpy()
    return flat.reshape(-1, TOP_K)


def own(scored: ScoredBatch, answers: Drawn) -> list[list[np.ndarray]]:
    """[question][answer] → [tokens]"""
    pieces = iter(scored.tokens.field("own").to_numpy(zero_copy_only=False))
    return [[next(pieces) for _ in group] for group in answers]


def exact_spec(
    checkpoint: Path, engine: Engine, role: Role, scope: MaskScope | None = None, tensor_parallel: int = 1
) -> ReplicaSpec:
    masked = tuple(parts_in(scope or MaskScope())) if role == "teacher" else None
    more = {"engine": engine, "tensor_parallel": tensor_parallel, "top_k": TOP_K, "masked": masked}
    return replica_spec(role, checkpoint=str(checkpoint), ratio=0.2, **more)
