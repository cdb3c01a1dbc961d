"""The rollout role of teacher, student and reference policy: answers questions and scores answers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from masters_ray import store
from masters_ray.config import Sampling
from masters_ray.method.prompts import difficulty_messages, parse_difficulty, question_messages
from masters_ray.records import Answer, Problem, Refused, Reply, Scored, Source
from masters_ray.replicas.model import ReplicaModel, sorted_out

TokenIds = tuple[int, ...]
_RATING_TOKENS = 64


@dataclass(frozen=True, kw_only=True)
class ScoredBatch:
    """A model's scores of the answers to a batch of questions."""

    prompt_tokens: list[int]
    """Tokens of each question with its pictures; 0 for a question without scored answers."""
    refused: dict[int, Refused]
    """Index of the question in the batch → why it was refused."""
    tokens: pa.Array
    """``store.top_scores``, or store.LOGPROBS, of all other answers, question by question."""


@dataclass(frozen=True, kw_only=True)
class WrittenBatch:
    """A model's answers to a batch of questions, with the scores taken while writing."""

    answers: list[tuple[Answer, ...]]
    """The answers to each question; empty for a refused one."""
    scored: ScoredBatch


class RolloutRole:
    def __init__(self, model: ReplicaModel, source: Source, top_k: int) -> None:
        """top_k: likeliest next tokens scored at every token; 0: only the log-prob of the answer's own token."""
        self._model, self._source, self._top_k = model, source, top_k

    def answer(
        self, problems: Sequence[Problem], sampling: Sampling, answers: int, seeds: Sequence[int | None]
    ) -> WrittenBatch:
        """Samples ``answers`` answers to each problem whose seed is not None, and scores them while writing."""
        asked = {index: seed for index, seed in enumerate(seeds) if seed is not None}
        prompts, refused = sorted_out({index: self._model.prompt(problems[index]) for index in asked})
        own_seeds = [asked[index] for index in prompts]
        drawn = self._model.engine.generate(
            [*prompts.values()], sampling, answers=answers, seeds=own_seeds, top_k=self._top_k
        )
        written, refused_later = sorted_out(dict(zip(prompts, drawn, strict=True)))
        texts = [
            tuple(
                Answer(source=self._source, text=self._model.chat.decode(one.token_ids), **vars(one))
                for one, _ in written.get(index, ())
            )
            for index in range(len(problems))
        ]
        scored = {index: [score for _, score in own] for index, own in written.items()}
        return WrittenBatch(answers=texts, scored=self._batch(len(problems), scored | refused | refused_later))

    def score(self, problems: Sequence[Problem], answers: Sequence[Sequence[TokenIds]]) -> ScoredBatch:
        """Scores every token of the given answers to each problem at temperature 1; a problem may have no answers."""
        return self._batch(len(problems), self._scores(problems, answers, self._top_k))

    def answer_greedily(self, problems: Sequence[Problem], max_tokens: int) -> list[Reply | Refused]:
        """Returns the greedy answer to each problem, or why it was refused."""
        return self._model.greedy(problems, question_messages, max_tokens)

    def rate(self, problems: Sequence[Problem]) -> list[int | None]:
        """Returns the model's rating of each question's difficulty, 1 to 10 (appendix F.1); None: unreadable or
        refused."""
        said = self._model.greedy(problems, difficulty_messages, _RATING_TOKENS)
        return [None if isinstance(one, Refused) else parse_difficulty(one.text) for one in said]

    def label_likelihoods(self, problems: Sequence[Problem]) -> list[float | None]:
        """Returns the mean log-prob, nats per token, of the label as the answer to each question; None: refused."""
        labels = [[self._model.chat.answer_ids(problem.label)] for problem in problems]
        found, _ = sorted_out(self._scores(problems, labels, 0))
        return [float(found[index][0].own.mean()) if index in found else None for index in range(len(problems))]

    def _scores(
        self, problems: Sequence[Problem], answers: Sequence[Sequence[TokenIds]], top_k: int
    ) -> dict[int, list[Scored] | Refused]:
        """Returns, by the problem's index, the scores of its answers, or why one of them could not be scored."""
        asked = {index: self._model.prompt(problems[index]) for index, group in enumerate(answers) if group}
        prompts, refused = sorted_out(asked)
        pairs = [(index, token_ids) for index in prompts for token_ids in answers[index]]
        said = self._model.engine.score([prompts[index] for index, _ in pairs], [ids for _, ids in pairs], top_k)
        found: dict[int, list[Scored] | Refused] = {**refused, **{index: [] for index in prompts}}
        for (index, _), one in zip(pairs, said, strict=True):
            group = found[index]
            if isinstance(one, Refused):
                found[index] = one
            elif isinstance(group, list):
                group.append(one)
        return found

    def _batch(self, questions: int, outcomes: Mapping[int, list[Scored] | Refused]) -> ScoredBatch:
        found, refused = sorted_out(outcomes)
        prompt_tokens = [found[index][0].prompt_tokens if found.get(index) else 0 for index in range(questions)]
        tokens = self._stored([one for index in sorted(found) for one in found[index]])
        return ScoredBatch(prompt_tokens=prompt_tokens, refused=refused, tokens=tokens)

    def _stored(self, scored: Sequence[Scored]) -> pa.Array:
        if self._top_k:
            return store.top_scores([one.top for one in scored])
        return pa.array([one.own for one in scored], store.LOGPROBS)
