"""A checkpoint in a vLLM engine: answers questions, scores answers and judges them, whatever its roles."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import TypeVar

import numpy as np
import pyarrow as pa

from masters_ray import store
from masters_ray.config import Sampling
from masters_ray.data import BadPictureError, decode
from masters_ray.method import prompts
from masters_ray.models import hf, weights
from masters_ray.models.chat import Chat
from masters_ray.models.vllm_engine import Prompt, VllmEngine
from masters_ray.records import Answer, Problem, Refused, Reply, Scored, Source
from masters_ray.replicas.judge import Verdict, judge
from masters_ray.replicas.spec import ReplicaSpec

T = TypeVar("T")
TokenIds = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class ScoredBatch:
    prompt_tokens: list[int]  # tokens of each question with its pictures; 0 for a question without scored answers
    refused: dict[int, Refused]  # index of the question in the batch → why it was refused
    tokens: pa.Array  # ``store.top_scores``, or store.LOGPROBS, of all other answers, question by question


@dataclass(frozen=True, kw_only=True)
class WrittenBatch:
    """A model's answers to a batch of questions, with the scores taken while writing."""

    answers: list[tuple[Answer, ...]]  # the answers to each question; empty for a refused one
    scored: ScoredBatch


class ReplicaModel:
    """As a teacher it scores the ``top_k`` likeliest next tokens at every token, otherwise the answer's own alone."""

    def __init__(self, spec: ReplicaSpec) -> None:
        """Raises as VllmEngine does, and CheckpointError when weights are missing."""
        folder = weights.locate(spec.checkpoint)
        hf.unexpected_weights(folder)  # raises for missing weights: vLLM, which fuses matrices, does not notice one
        self.chat = Chat(folder)
        teaches = "teacher" in spec.roles
        self._source: Source = "teacher" if teaches else "student"
        self._top_k, self._judge_tokens = spec.top_k if teaches else 0, spec.judge_max_tokens
        engine, vocabulary = spec.engine, weights.vocabulary(folder)
        known = max(self.chat.tokenizer.get_vocab().values()) + 1
        # Vocabulary rows that stand for no token, or for a token that not all models of the run have.
        padding = range(known if spec.common is None else min(known, spec.common), vocabulary or 0)
        if 0 < spec.share < 1 and engine.gpu_memory_utilization is None:
            engine = replace(engine, gpu_memory_utilization=0.9 * spec.share)
        never = {*self.chat.placeholder_ids(), *spec.never}
        self.engine = VllmEngine(
            folder,
            engine,
            tensor_parallel=spec.tensor_parallel,
            parts=spec.masked,
            ratio=spec.ratio,
            ratios=spec.ratios,
            banned=[*sorted(one for one in never if vocabulary is None or one < vocabulary), *padding],
            sleeps=spec.sleeps,
        )

    def answer(
        self, problems: Sequence[Problem], sampling: Sampling, answers: int, seeds: Sequence[int | None]
    ) -> WrittenBatch:
        """Samples ``answers`` answers to each problem whose seed is not None, and scores them while writing."""
        asked = {index: seed for index, seed in enumerate(seeds) if seed is not None}
        given, refused = _sorted_out({index: self.prompt(problems[index]) for index in asked})
        own_seeds = [asked[index] for index in given]
        drawn = self.engine.generate([*given.values()], sampling, answers=answers, seeds=own_seeds, top_k=self._top_k)
        written, refused_later = _sorted_out(dict(zip(given, drawn, strict=True)))
        texts = [
            tuple(
                Answer(source=self._source, text=self.chat.decode(one.token_ids), **vars(one))
                for one, _ in written.get(index, ())
            )
            for index in range(len(problems))
        ]
        scored = {index: [score for _, score in own] for index, own in written.items()}
        return WrittenBatch(answers=texts, scored=self._batch(len(problems), scored | refused | refused_later))

    def score(self, problems: Sequence[Problem], answers: Sequence[Sequence[TokenIds]]) -> ScoredBatch:
        """Scores every token of the given answers to each problem at temperature 1; a problem may have no answers."""
        return self._batch(len(problems), self._scores(problems, answers, self._top_k))

    def own_logprobs(
        self, problems: Sequence[Problem], answers: Sequence[Sequence[TokenIds]]
    ) -> list[list[np.ndarray] | Refused]:
        """Returns float32 [tokens] of each given answer to each problem: the log-probs of the answer's own tokens."""
        found = self._scores(problems, answers, 0)
        outcomes = (found[index] for index in range(len(problems)))
        return [one if isinstance(one, Refused) else [score.own for score in one] for one in outcomes]

    def label_likelihoods(self, problems: Sequence[Problem]) -> list[float | None]:
        """Returns the mean log-prob, nats per token, of the label as the answer to each question; None: refused."""
        labels = [[self.chat.answer_ids(problem.label)] for problem in problems]
        found, _ = _sorted_out(self._scores(problems, labels, 0))
        return [float(found[index][0].own.mean()) if index in found else None for index in range(len(problems))]

    def answer_greedily(self, problems: Sequence[Problem], max_tokens: int) -> list[Reply | Refused]:
        return self._greedy([self.prompt(one) for one in problems], max_tokens)

    def rate(self, problems: Sequence[Problem]) -> list[int | None]:
        """Returns the difficulty of each question, 1 to 10 (appendix F.1); None: unreadable or refused."""
        said = self._greedy([self.prompt(one, prompts.difficulty_messages) for one in problems], max_tokens=64)
        return [None if isinstance(one, Refused) else prompts.parse_difficulty(one.text) for one in said]

    def judge(
        self, problems: Sequence[prompts.Asked], answers: Sequence[Sequence[str]], reasoning: bool
    ) -> list[list[Verdict]]:
        def ask(conversations: Sequence[Sequence[prompts.Message]]) -> list[Reply | Refused]:
            given = [Prompt(token_ids=self.chat.token_ids(messages)) for messages in conversations]
            return self._greedy(given, self._judge_tokens)

        return judge(ask, problems, answers, reasoning)

    def prompt(
        self, problem: Problem, messages: Callable[[Problem], Sequence[prompts.Message]] = prompts.question_messages
    ) -> Prompt | Refused:
        """Returns the engine's prompt for ``messages(problem)``, pictures decoded; Refused for a bad picture."""
        try:
            pictures = tuple(decode(picture) for picture in problem.pictures)
        except BadPictureError as error:
            return Refused(reason=str(error), kind="picture")
        return Prompt(token_ids=self.chat.token_ids(messages(problem)), pictures=pictures)

    def _greedy(self, given: Sequence[Prompt | Refused], max_tokens: int) -> list[Reply | Refused]:
        said = iter(self.engine.generate_greedy([one for one in given if isinstance(one, Prompt)], max_tokens))
        outcomes = [one if isinstance(one, Refused) else next(said) for one in given]
        return [
            one
            if isinstance(one, Refused)
            else Reply(text=self.chat.decode(one.token_ids), finish=one.finish, tokens=len(one.token_ids))
            for one in outcomes
        ]

    def _scores(
        self, problems: Sequence[Problem], answers: Sequence[Sequence[TokenIds]], top_k: int
    ) -> dict[int, list[Scored] | Refused]:
        """Returns, by the problem's index, the scores of its answers, or why one of them could not be scored."""
        given, refused = _sorted_out({index: self.prompt(problems[index]) for index, own in enumerate(answers) if own})
        pairs = [(index, token_ids) for index in given for token_ids in answers[index]]
        said = iter(self.engine.score([given[index] for index, _ in pairs], [ids for _, ids in pairs], top_k))
        found: dict[int, list[Scored] | Refused] = {**refused}
        for index in given:
            own = list(islice(said, len(answers[index])))
            first_refused = next((one for one in own if isinstance(one, Refused)), None)
            found[index] = first_refused or [one for one in own if isinstance(one, Scored)]
        return found

    def _batch(self, questions: int, outcomes: Mapping[int, list[Scored] | Refused]) -> ScoredBatch:
        found, refused = _sorted_out(outcomes)
        prompt_tokens = [found[index][0].prompt_tokens if found.get(index) else 0 for index in range(questions)]
        tokens = self._stored([one for index in sorted(found) for one in found[index]])
        return ScoredBatch(prompt_tokens=prompt_tokens, refused=refused, tokens=tokens)

    def _stored(self, scored: Sequence[Scored]) -> pa.Array:
        if self._top_k:
            return store.top_scores([one.top for one in scored])
        return pa.array([one.own for one in scored], store.LOGPROBS)


def _sorted_out(outcomes: Mapping[int, T | Refused]) -> tuple[dict[int, T], dict[int, Refused]]:
    return (
        {index: one for index, one in outcomes.items() if not isinstance(one, Refused)},
        {index: one for index, one in outcomes.items() if isinstance(one, Refused)},
    )
