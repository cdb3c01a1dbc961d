"""The masked teacher: answers the questions and scores every answer of the group."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from masters_ray.config import Sampling
from masters_ray.masks import MaskReport
from masters_ray.prompts import difficulty_messages, parse_difficulty
from masters_ray.records import Problem, Refused, Reply, Scored
from masters_ray.replicas.model import ReplicaModel, ScoredBatch, TokenIds, WrittenBatch, own_logprobs
from masters_ray.store import OWN, Ragged, top_scores

_RATING_TOKENS = 64


class TeacherRole:
    """A replica of the teacher."""

    def __init__(self, model: ReplicaModel, top_k: int) -> None:
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

    def answer_greedily(self, problems: Sequence[Problem], max_tokens: int) -> list[Reply | Refused]:
        """The greedy answer to each problem, or why it could not be asked."""
        return self._model.answer_greedily(problems, max_tokens)

    def rate(self, problems: Sequence[Problem]) -> list[int | None]:
        """How hard each question is, from 1 to 10 (appendix F.1); None where nothing can be read, or the engine refuses
        it."""
        said = self._model.greedy(problems, difficulty_messages, _RATING_TOKENS)
        return [None if isinstance(one, Refused) else parse_difficulty(one.text) for one in said]

    def label_likelihoods(self, problems: Sequence[Problem]) -> list[float | None]:
        """Mean log-probability of the label's tokens as the answer to each question, in nats; None where the engine
        refuses it."""
        labels = [[self._model.chat.answer_ids(problem.label)] for problem in problems]
        scored = self._model.score(problems, labels, top_k=0, pack=own_logprobs)
        ends = np.cumsum(scored.tokens.lengths)
        values = scored.tokens.columns.get(OWN, np.empty(0))
        means = iter([float(part.mean()) for part in np.split(values, ends[:-1]) if len(part)])
        return [None if index in scored.refused else next(means) for index in range(len(problems))]


def _top_scores(scored: Sequence[Scored]) -> Ragged:
    return top_scores([one.top for one in scored])
