"""The student that writes rollouts, and gives the reference policy's log-probabilities."""

from __future__ import annotations

from collections.abc import Sequence

from masters_ray.actors.model import Model
from masters_ray.config import Sampling
from masters_ray.records import Answer, Problem, Refused, Scored, Written


class Student:
    """A replica of the student."""

    def __init__(self, model: Model) -> None:
        self._model = model

    def answer(
        self, problems: Sequence[Problem], sampling: Sampling, answers: int, seeds: Sequence[int]
    ) -> list[tuple[Written, ...] | Refused]:
        """``answers`` sampled answers to each problem, with the student's log-probabilities of their tokens."""
        return self._model.answer("student", problems, sampling, answers=answers, seeds=seeds, top_k=0)

    def score(self, problems: Sequence[Problem], answers: Sequence[Sequence[Answer]]) -> list[list[Scored] | Refused]:
        """What this student gives to each token of every answer, temperature 1; without distributions."""
        return self._model.score(problems, answers, top_k=0)

    def answer_greedily(self, problems: Sequence[Problem], max_tokens: int) -> list[str]:
        """The text of the greedy answer to each problem."""
        return self._model.answer_greedily(problems, max_tokens)
