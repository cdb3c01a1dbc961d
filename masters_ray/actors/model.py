"""A checkpoint on an engine: problems in, answers and scores out. What teacher, student and judge have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from masters_ray import store, weights
from masters_ray.config import Engine, Sampling
from masters_ray.data import BadPictureError, decode
from masters_ray.engines import hf
from masters_ray.engines.chat import Chat
from masters_ray.engines.vllm_engine import Mask, Prompt, VllmEngine
from masters_ray.prompts import Message, question_messages
from masters_ray.records import Answer, Problem, Refused, Reply, Scored, Source
from masters_ray.store import Ragged

T = TypeVar("T")
TokenIds = tuple[int, ...]
Messages = Callable[[Problem], Sequence[Message]]
Pack = Callable[[Sequence[Scored]], Ragged]
"""What a role keeps of its scores."""


@dataclass(frozen=True, kw_only=True)
class ScoredBatch:
    """What a model said of answers to a batch of questions."""

    prompt_tokens: list[int]
    """Of each question with its pictures; 0 where there was no answer to score."""
    refused: dict[int, Refused]
    """By the question's index in the batch."""
    tokens: Ragged
    """Of all other answers, question by question."""


@dataclass(frozen=True, kw_only=True)
class WrittenBatch:
    """What a model wrote to a batch of questions, and what it said of it on the way."""

    answers: list[tuple[Answer, ...]]
    """To each question; none where it was refused."""
    scored: ScoredBatch


class Model:
    """One engine with its chat template."""

    def __init__(
        self,
        folder: Path,
        engine: Engine,
        *,
        tensor_parallel: int = 1,
        top_k: int = 1,
        mask: Mask | None = None,
        sleeps: bool = False,
        common: int | None = None,
        never: Sequence[int] = (),
    ) -> None:
        """As of VllmEngine. Raises CheckpointError also when weights are missing.

        common: tokens that the other models of the run have rows for as well; default: all. never:
        tokens that it must not write, beside those that stand for pictures and those without a row in all models."""
        hf.superfluous(folder)  # vLLM fuses matrices, and does not miss one of them
        self.chat = Chat(folder)
        vocabulary = weights.vocabulary(folder)
        known = [max(self.chat.tokenizer.get_vocab().values()) + 1, *([] if common is None else [common])]
        padding = range(min(known), vocabulary or 0)  # rows without a token, or without one that all models have
        marks = sorted(one for one in {*self.chat.placeholder_ids(), *never} if vocabulary is None or one < vocabulary)
        self.engine = VllmEngine(
            folder,
            engine,
            tensor_parallel=tensor_parallel,
            top_k=top_k,
            mask=mask,
            banned=[*marks, *padding],
            vocabulary=vocabulary,
            sleeps=sleeps,
        )

    def prompts(self, problems: Sequence[Problem]) -> list[Prompt | Refused]:
        """The problems as the engine wants them, pictures decoded."""
        return [self._prompt(problem) for problem in problems]

    def text_prompts(self, conversations: Sequence[Sequence[Message]]) -> list[Prompt]:
        """Conversations without pictures as the engine wants them."""
        return [Prompt(token_ids=self.chat.token_ids(messages)) for messages in conversations]

    def answer(
        self,
        source: Source,
        problems: Sequence[Problem],
        sampling: Sampling,
        *,
        answers: int,
        seeds: Sequence[int | None],
        top_k: int,
        pack: Pack,
    ) -> WrittenBatch:
        """``answers`` sampled answers to each problem that has a seed, scored on the way."""
        prompts, refused = _sorted_out(
            {index: self._prompt(problems[index]) for index, seed in enumerate(seeds) if seed is not None}
        )
        drawn = self.engine.generate(
            list(prompts.values()),
            sampling,
            answers=answers,
            seeds=[seed for index, seed in enumerate(seeds) if seed is not None and index in prompts],
            top_k=top_k,
        )
        written, refused_later = _sorted_out(dict(zip(prompts, drawn, strict=True)))
        return WrittenBatch(
            answers=[
                tuple(
                    Answer(source=source, text=self.chat.decode(one.token_ids), **vars(one))
                    for one, _ in written.get(index, ())
                )
                for index in range(len(problems))
            ],
            scored=_batch(
                len(problems),
                {index: [scored for _, scored in one] for index, one in written.items()},
                refused | refused_later,
                pack,
            ),
        )

    def score(
        self, problems: Sequence[Problem], answers: Sequence[Sequence[TokenIds]], *, top_k: int, pack: Pack
    ) -> ScoredBatch:
        """What the model gives to each token of every answer to each problem; a problem may have none."""
        prompts, refused = _sorted_out(
            {index: self._prompt(problems[index]) for index, group in enumerate(answers) if group}
        )
        asked = [(index, token_ids) for index in prompts for token_ids in answers[index]]
        scores = self.engine.score([prompts[index] for index, _ in asked], [token_ids for _, token_ids in asked], top_k)
        found: dict[int, list[Scored]] = {index: [] for index in prompts}
        for (index, _), one in zip(asked, scores, strict=True):
            if isinstance(one, Refused):
                refused[index] = one
            else:
                found[index].append(one)
        return _batch(
            len(problems), {index: one for index, one in found.items() if index not in refused}, refused, pack
        )

    def answer_greedily(self, problems: Sequence[Problem], max_tokens: int) -> list[Reply | Refused]:
        """The greedy answer to each problem, or why it could not be asked."""
        return self.greedy(problems, question_messages, max_tokens)

    def greedy(self, problems: Sequence[Problem], messages: Messages, max_tokens: int) -> list[Reply | Refused]:
        """The greedy answer to what ``messages`` makes of each problem."""
        prompts, refused = _sorted_out({index: self._prompt(one, messages) for index, one in enumerate(problems)})
        said = self.reply(list(prompts.values()), max_tokens)
        found = refused | dict(zip(prompts, said, strict=True))
        return [found[index] for index in range(len(problems))]

    def reply(self, prompts: Sequence[Prompt], max_tokens: int) -> list[Reply | Refused]:
        """The greedy answer to each prompt."""
        return [
            one if isinstance(one, Refused) else Reply(text=self.chat.decode(one.token_ids), finish=one.finish)
            for one in self.engine.generate_greedy(prompts, max_tokens)
        ]

    def _prompt(self, problem: Problem, messages: Messages = question_messages) -> Prompt | Refused:
        try:
            pictures = tuple(decode(picture) for picture in problem.pictures)
        except BadPictureError as error:
            return Refused(reason=str(error), kind="picture")
        return Prompt(token_ids=self.chat.token_ids(messages(problem)), pictures=pictures)


def own_logprobs(scored: Sequence[Scored]) -> Ragged:
    """A Pack that keeps the log-probabilities of the answers' own tokens."""
    return store.own_logprobs([one.own for one in scored])


def _sorted_out(outcomes: dict[int, T | Refused]) -> tuple[dict[int, T], dict[int, Refused]]:
    return (
        {index: one for index, one in outcomes.items() if not isinstance(one, Refused)},
        {index: one for index, one in outcomes.items() if isinstance(one, Refused)},
    )


def _batch(questions: int, found: dict[int, list[Scored]], refused: dict[int, Refused], pack: Pack) -> ScoredBatch:
    prompt_tokens = [found[index][0].prompt_tokens if found.get(index) else 0 for index in range(questions)]
    tokens = pack([one for index in sorted(found) for one in found[index]])
    return ScoredBatch(prompt_tokens=prompt_tokens, refused=refused, tokens=tokens)
