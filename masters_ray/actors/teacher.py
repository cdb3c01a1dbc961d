"""The masked teacher: answers the questions and scores every answer of the group."""

from __future__ import annotations

from collections.abc import Sequence

from masters_ray.actors.model import Model, ScoredBatch, TokenIds, WrittenBatch
from masters_ray.config import Sampling
from masters_ray.masks import MaskReport
from masters_ray.records import Problem, Scored
from masters_ray.store import Ragged, top_scores


class Teacher:
    """A replica of the teacher."""

    def __init__(self, model: Model, top_k: int) -> None:
        self._model, self._top_k = model, top_k

    def mask(self, ratio: float) -> MaskReport:
        """The checkpoint's weights, masked at ``ratio``, in place of whatever the replica held."""
        return self._model.engine.mask(ratio)

    def answer(
        self, problems: Sequence[Problem], sampling: Sampling, answers: int, seeds: Sequence[int | None]
    ) -> WrittenBatch:
        """``answers`` sampled answers to each problem that has a seed, scored while they are written."""
        return self._model.answer(
            "teacher", problems, sampling, answers=answers, seeds=seeds, top_k=self._top_k, pack=_top_scores
        )

    def score(self, problems: Sequence[Problem], answers: Sequence[Sequence[TokenIds]]) -> ScoredBatch:
        """The next-token distributions at each token of every answer: top k with left-out mass, as they are stored."""
        return self._model.score(problems, answers, top_k=self._top_k, pack=_top_scores)

    def answer_greedily(self, problems: Sequence[Problem], max_tokens: int) -> list[str]:
        """The text of the greedy answer to each problem."""
        return self._model.answer_greedily(problems, max_tokens)


def _top_scores(scored: Sequence[Scored]) -> Ragged:
    return top_scores([one.top for one in scored])
