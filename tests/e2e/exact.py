"""Replicas on real engines whose scores are told as the engine gives them, not as they are stored."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from masters_ray.config import Engine, MaskScope
from masters_ray.models.vllm_engine import Mask
from masters_ray.parts import parts_in
from masters_ray.records import Answer, Problem, Scored
from masters_ray.replicas.actor import ReplicaActor
from masters_ray.replicas.pool import Pool
from masters_ray.replicas.processes import Role
from masters_ray.replicas.rollout import RolloutRole, ScoredBatch
from masters_ray.replicas.spec import ReplicaSpec
from masters_ray.store import Ragged
from tests.builders import replica_spec

TOP_K = 16


class ExactRole(RolloutRole):
    """Columns top_ids, top_logprobs and own."""

    def _stored(self, scored: Sequence[Scored]) -> Ragged:
        columns = {
            "top_ids": np.concatenate([one.top.top_ids for one in scored]),
            "top_logprobs": np.concatenate([one.top.top_logprobs for one in scored]),
            "own": np.concatenate([one.own for one in scored]),
        }
        return Ragged(lengths=np.array([len(one.own) for one in scored]), columns=columns)


class ExactActor(ReplicaActor):
    def _load(self, spec: ReplicaSpec) -> None:
        super()._load(spec)
        teaches = "teacher" in spec.roles
        role = ExactRole(self._model, "teacher" if teaches else "student", TOP_K if teaches else 0)
        self._roles = dict.fromkeys(spec.roles, role)


Drawn = list[tuple[Answer, ...]]


def score(pool: Pool, problems: list[Problem], answers: Drawn) -> ScoredBatch:
    scored: ScoredBatch = pool.call("score", problems, [[one.token_ids for one in group] for group in answers])
    return scored


def by_answer(scored: ScoredBatch, answers: Drawn, column: str) -> list[list[np.ndarray]]:
    """[question][answer] → [tokens, …]"""
    pieces = iter(np.split(scored.tokens.columns[column], np.cumsum(scored.tokens.lengths)[:-1]))
    return [[next(pieces) for _ in group] for group in answers]


def exact_spec(
    checkpoint: Path, engine: Engine, role: Role, scope: MaskScope | None = None, tensor_parallel: int = 1
) -> ReplicaSpec:
    mask = Mask(parts=parts_in(scope or MaskScope()), ratio=0.2) if role == "teacher" else None
    more = {"engine": engine, "tensor_parallel": tensor_parallel, "top_k": TOP_K, "mask": mask}
    return replica_spec(role, checkpoint=str(checkpoint), **more)
