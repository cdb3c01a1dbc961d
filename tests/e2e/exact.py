"""Replicas on real engines whose scores are told as the engine gives them, not as they are stored."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from masters_ray.config import Engine, MaskScope, Sampling
from masters_ray.engines.vllm_engine import Mask
from masters_ray.records import Answer, Problem, Scored
from masters_ray.replicas.actor import ReplicaActor, ReplicaSpec, Role
from masters_ray.replicas.model import ReplicaModel, ScoredBatch, WrittenBatch
from masters_ray.replicas.pool import Pool
from masters_ray.replicas.spawn import Deployment
from masters_ray.replicas.teacher import TeacherRole
from masters_ray.store import Ragged

TOP_K = 16


class ExactPlayer:
    """Answers and scores as teachers and students do, but tells its scores as the engine gives them, not as they are
    stored: columns top_ids, top_logprobs and own."""

    def __init__(self, model: ReplicaModel, role: Role) -> None:
        self._model, self._role = model, role
        self._top_k = TOP_K if role == "teacher" else 0
        self.mask = model.engine.mask
        self.answer_greedily = model.answer_greedily
        teacher = TeacherRole(model, self._top_k)
        self.rate, self.label_likelihoods = teacher.rate, teacher.label_likelihoods

    def answer(self, problems: list[Problem], sampling: Sampling, answers: int, seeds: list[int]) -> WrittenBatch:
        given = {"answers": answers, "seeds": seeds, "top_k": self._top_k, "pack": exactly}
        return self._model.answer(self._role, problems, sampling, **given)  # type: ignore[arg-type]

    def score(self, problems: list[Problem], answers: list[list[tuple[int, ...]]]) -> ScoredBatch:
        return self._model.score(problems, answers, top_k=self._top_k, pack=exactly)


def exactly(scored: Sequence[Scored]) -> Ragged:
    columns = {
        "top_ids": np.concatenate([one.top.top_ids for one in scored]),
        "top_logprobs": np.concatenate([one.top.top_logprobs for one in scored]),
        "own": np.concatenate([one.own for one in scored]),
    }
    return Ragged(lengths=np.array([len(one.own) for one in scored]), columns=columns)


class ExactHost(ReplicaActor):
    def __init__(self, spec: ReplicaSpec) -> None:
        super().__init__(spec)
        self._players = {role: ExactPlayer(self._model, role) for role in spec.roles}


Drawn = list[tuple[Answer, ...]]


def score(pool: Pool, problems: list[Problem], answers: Drawn) -> ScoredBatch:
    scored: ScoredBatch = pool.call("score", problems, [[one.token_ids for one in group] for group in answers])
    return scored


def by_answer(scored: ScoredBatch, answers: Drawn, column: str) -> list[list[np.ndarray]]:
    """[question][answer] → [tokens, …]"""
    pieces = iter(np.split(scored.tokens.columns[column], np.cumsum(scored.tokens.lengths)[:-1]))
    return [[next(pieces) for _ in group] for group in answers]


def deployment(
    checkpoint: Path, engine: Engine, role: Role, scope: MaskScope | None = None, tensor_parallel: int = 1
) -> Deployment:
    mask = Mask(scope=scope or MaskScope(), ratio=0.2) if role == "teacher" else None
    return Deployment(
        spec=ReplicaSpec(
            checkpoint=str(checkpoint),
            roles=(role,),
            engine=engine,
            tensor_parallel=tensor_parallel,
            top_k=TOP_K,
            mask=mask,
        ),
        replicas=1,
        cpus=0.5,
        gpus=0,
    )
