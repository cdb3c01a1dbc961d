"""The masked teacher: answers the questions and scores every answer of the group."""

from __future__ import annotations

from collections.abc import Sequence

from masters_ray.actors.model import Model
from masters_ray.config import Sampling
from masters_ray.masks import MaskReport
from masters_ray.records import Answer, Problem, Refused, Scored, Written


class Teacher:
    """A replica of the teacher."""

    def __init__(self, model: Model, top_k: int) -> None:
        self._model, self._top_k = model, top_k

    def mask(self, ratio: float) -> MaskReport:
        """The checkpoint's weights, masked at ``ratio``, in place of whatever the replica held."""
        return self._model.engine.mask(ratio)

    def answer(
        self, problems: Sequence[Problem], sampling: Sampling, answers: int, seeds: Sequence[int]
    ) -> list[tuple[Written, ...] | Refused]:
        """``answers`` sampled answers to each problem, scored while they are written."""
        return self._model.answer("teacher", problems, sampling, answers=answers, seeds=seeds, top_k=self._top_k)

    def score(self, problems: Sequence[Problem], answers: Sequence[Sequence[Answer]]) -> list[list[Scored] | Refused]:
        """For every answer to each problem the next-token distributions at each of its tokens: top k with left-out
        mass."""
        return self._model.score(problems, answers, self._top_k)

    def answer_greedily(self, problems: Sequence[Problem], max_tokens: int) -> list[str]:
        """The text of the greedy answer to each problem."""
        return self._model.answer_greedily(problems, max_tokens)
