"""The masked teacher: answers the questions and scores every answer of the group."""

from __future__ import annotations

from collections.abc import Sequence

from masters_ray.actors.model import Model
from masters_ray.config import Sampling
from masters_ray.masks import MaskReport
from masters_ray.records import Answer, Problem, TokenScores


class Teacher:
    """A replica of the teacher."""

    def __init__(self, model: Model, top_k: int) -> None:
        self._model, self._top_k = model, top_k

    def mask(self, ratio: float) -> MaskReport:
        """The checkpoint's weights, masked at ``ratio``, in place of whatever the replica held."""
        return self._model.engine.mask(ratio)

    def answer(
        self, problems: Sequence[Problem], sampling: Sampling, answers: int, seeds: Sequence[int]
    ) -> list[tuple[Answer, ...]]:
        """``answers`` sampled answers to each problem."""
        return self._model.answer("teacher", problems, sampling, answers=answers, seeds=seeds)

    def score(
        self, problems: Sequence[Problem], answers: Sequence[Sequence[Answer]]
    ) -> list[tuple[int, list[TokenScores]]]:
        """For each problem the tokens of its prompt, and for every answer the next-token distributions at each of its
        tokens: top k with left-out mass. Each problem needs an answer."""
        scored = self._model.score(problems, answers, self._top_k)
        return [(group[0].prompt_tokens, [one.top for one in group]) for group in scored]

    def answer_greedily(self, problems: Sequence[Problem], max_tokens: int) -> list[str]:
        """The text of the greedy answer to each problem."""
        return self._model.answer_greedily(problems, max_tokens)
