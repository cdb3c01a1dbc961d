"""The student that writes rollouts, and gives the reference policy's log-probabilities."""

from __future__ import annotations

from collections.abc import Sequence

from masters_ray.config import Sampling
from masters_ray.records import Problem, Refused, Reply
from masters_ray.replicas.model import ReplicaModel, ScoredBatch, TokenIds, WrittenBatch, own_logprobs


class StudentRole:
    """A replica of the student."""

    def __init__(self, model: ReplicaModel) -> None:
        self._model = model

    def answer(
        self, problems: Sequence[Problem], sampling: Sampling, answers: int, seeds: Sequence[int | None]
    ) -> WrittenBatch:
        """``answers`` sampled answers to each problem that has a seed, with the student's log-probabilities of their
        tokens."""
        return self._model.answer(
            "student", problems, sampling, answers=answers, seeds=seeds, top_k=0, pack=own_logprobs
        )

    def score(self, problems: Sequence[Problem], answers: Sequence[Sequence[TokenIds]]) -> ScoredBatch:
        """This student's log-probability of each token of every answer, temperature 1."""
        return self._model.score(problems, answers, top_k=0, pack=own_logprobs)

    def answer_greedily(self, problems: Sequence[Problem], max_tokens: int) -> list[Reply | Refused]:
        """The greedy answer to each problem, or why it could not be asked."""
        return self._model.answer_greedily(problems, max_tokens)
