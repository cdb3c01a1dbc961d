"""The student that writes rollouts, and gives the reference policy's log-probabilities."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from masters_ray.actors.model import Model
from masters_ray.config import Sampling
from masters_ray.records import Answer, Problem


class Student:
    """A replica of the student."""

    def __init__(self, model: Model) -> None:
        self._model = model

    def answer(
        self, problems: Sequence[Problem], sampling: Sampling, answers: int, seeds: Sequence[int]
    ) -> list[tuple[Answer, ...]]:
        """``answers`` sampled answers to each problem."""
        return self._model.answer("student", problems, sampling, answers=answers, seeds=seeds)

    def logprobs(self, problems: Sequence[Problem], answers: Sequence[Sequence[Answer]]) -> list[list[np.ndarray]]:
        """float32 [tokens] for every answer: what this student gives to each of its tokens, temperature 1."""
        return [[one.own for one in group] for group in self._model.score(problems, answers, top_k=0)]

    def answer_greedily(self, problems: Sequence[Problem], max_tokens: int) -> list[str]:
        """The text of the greedy answer to each problem."""
        return self._model.answer_greedily(problems, max_tokens)
