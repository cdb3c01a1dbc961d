"""A checkpoint on an engine: problems in, answers and scores out. What teacher, student and judge have in common."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from masters_ray.config import Engine, Sampling
from masters_ray.data import decode
from masters_ray.engines.chat import Chat
from masters_ray.engines.vllm_engine import Mask, Prompt, VllmEngine
from masters_ray.errors import DataError
from masters_ray.prompts import Message, question_messages
from masters_ray.records import Answer, Problem, Refused, Scored, Source, Written


class Model:
    """One engine with its chat template."""

    def __init__(
        self, folder: Path, engine: Engine, *, tensor_parallel: int = 1, top_k: int = 1, mask: Mask | None = None
    ) -> None:
        self.chat = Chat(folder)
        self.engine = VllmEngine(
            folder,
            engine,
            tensor_parallel=tensor_parallel,
            top_k=top_k,
            mask=mask,
            banned=self.chat.placeholder_ids(),
        )

    def prompts(self, problems: Sequence[Problem]) -> list[Prompt]:
        """The problems as the engine wants them, pictures decoded."""
        return [
            Prompt(
                token_ids=self.chat.token_ids(question_messages(problem)),
                pictures=tuple(decode(picture) for picture in problem.pictures),
            )
            for problem in problems
        ]

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
        seeds: Sequence[int],
        top_k: int,
    ) -> list[tuple[Written, ...] | Refused]:
        """``answers`` sampled answers to each problem, scored on the way."""
        drawn = self.engine.generate(self.prompts(problems), sampling, answers=answers, seeds=seeds, top_k=top_k)
        return [
            one
            if isinstance(one, Refused)
            else tuple(
                (Answer(source=source, text=self.chat.decode(ids), token_ids=ids), scored) for ids, scored in one
            )
            for one in drawn
        ]

    def score(
        self, problems: Sequence[Problem], answers: Sequence[Sequence[Answer]], top_k: int
    ) -> list[list[Scored] | Refused]:
        """For each answer of each problem: top-k distributions and log-probabilities of its own tokens.

        Answers of one problem that are the same to the token are scored once.
        """
        prompts = self.prompts(problems)
        distinct = [
            (index, token_ids)
            for index, group in enumerate(answers)
            for token_ids in dict.fromkeys(answer.token_ids for answer in group)
        ]
        scores = self.engine.score(
            [prompts[index] for index, _ in distinct], [token_ids for _, token_ids in distinct], top_k
        )
        refused = {index: one for (index, _), one in zip(distinct, scores, strict=True) if isinstance(one, Refused)}
        found = {key: one for key, one in zip(distinct, scores, strict=True) if isinstance(one, Scored)}
        return [
            refused[index] if index in refused else [found[index, answer.token_ids] for answer in group]
            for index, group in enumerate(answers)
        ]

    def answer_greedily(self, problems: Sequence[Problem], max_tokens: int) -> list[str]:
        """The text of the greedy answer to each problem. Raises DataError when the engine refuses a problem."""
        drawn = self.engine.generate_greedy(self.prompts(problems), max_tokens)
        for problem, one in zip(problems, drawn, strict=True):
            if isinstance(one, Refused):
                raise DataError(
                    f"question {problem.id}: the engine refuses it: {one.reason} Shorten the question, use smaller "
                    "pictures, or raise engine.max_model_len."
                )
        return [self.chat.decode(ids) for ids in drawn if not isinstance(ids, Refused)]
