"""The judge: two calls that turn an answer into an accuracy reward (METHOD 4, appendix section D)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from masters_ray.prompts import (
    EVALUATION,
    PARSING,
    REASONING,
    REASONING_PARSING,
    JudgePrompt,
    Message,
    ground_truth,
    with_choices,
)
from masters_ray.records import Problem, Refused
from masters_ray.replicas.model import ReplicaModel


@dataclass(frozen=True, kw_only=True)
class Verdict:
    accuracy: int | None
    """0 or 1; None when neither call was readable."""
    text: str
    """What the first call said."""
    reasoning: int | None = None
    """Whether the reasoning supports the answer, 0 or 1; None when nobody asked, or neither call was readable."""


class JudgeRole:
    """A replica of the judge. Greedy, so that the same case has the same verdict."""

    def __init__(self, model: ReplicaModel, max_tokens: int) -> None:
        self._model, self._max_tokens = model, max_tokens

    def judge(
        self, problems: Sequence[Problem], answers: Sequence[Sequence[str]], reasoning: bool
    ) -> list[list[Verdict]]:
        """A verdict for each answer's text to each problem, on its reasoning too if wanted; equal cases once.

        A case that is too long for the engine has no accuracy, and what the engine said for its text.
        """
        cases = [
            [_Case(with_choices(problem), ground_truth(problem), text) for text in texts]
            for problem, texts in zip(problems, answers, strict=True)
        ]
        distinct = list(dict.fromkeys(case for group in cases for case in group))
        accuracies = self._scores(EVALUATION, [*distinct], PARSING)
        reasonings = [_Score(None, "")] * len(distinct)
        if reasoning:
            asked = [(case.question, case.text) for case in distinct]
            reasonings = self._scores(REASONING, asked, REASONING_PARSING)
        verdicts = {
            case: Verdict(accuracy=accuracy.value, text=accuracy.said, reasoning=support.value)
            for case, accuracy, support in zip(distinct, accuracies, reasonings, strict=True)
        }
        return [[verdicts[case] for case in group] for group in cases]

    def _scores(self, first: JudgePrompt, inserted: Sequence[tuple[str, ...]], second: JudgePrompt) -> list[_Score]:
        """The 0 or 1 that the first prompt gives of each of the inserted texts. Only where it cannot be read, a second
        call is made, of what the judge said in the first."""
        replies = self._ask([first.messages(*texts) for texts in inserted])
        scores = [None if isinstance(reply, Refused) else first.score(reply) for reply in replies]
        unread = {
            index: reply
            for index, (reply, score) in enumerate(zip(replies, scores, strict=True))
            if isinstance(reply, str) and score is None
        }
        again = self._ask([second.messages(reply) for reply in unread.values()])
        for index, reply in zip(unread, again, strict=True):
            scores[index] = None if isinstance(reply, Refused) else second.score(reply)
        return [
            _Score(score, reply.reason if isinstance(reply, Refused) else reply)
            for score, reply in zip(scores, replies, strict=True)
        ]

    def _ask(self, conversations: list[list[Message]]) -> list[str | Refused]:
        if not conversations:
            return []
        said = self._model.reply(self._model.text_prompts(conversations), self._max_tokens)
        return [one if isinstance(one, Refused) else one.text for one in said]


class _Case(NamedTuple):
    question: str
    """With its choices."""
    label: str
    """With its letter."""
    text: str


class _Score(NamedTuple):
    value: int | None
    said: str
    """In the first call."""
