"""The judge: two calls that turn an answer into an accuracy reward (METHOD 4, appendix section D)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from masters_ray.actors.model import Model
from masters_ray.prompts import evaluation_messages, parse_evaluation, parse_score, parsing_messages
from masters_ray.records import Problem, Refused


@dataclass(frozen=True, kw_only=True)
class Verdict:
    accuracy: int | None
    """0 or 1; None when neither call was readable."""
    text: str
    """What the first call said."""


class Judge:
    """A replica of the judge. Greedy, so that the same case has the same verdict."""

    def __init__(self, model: Model, max_tokens: int) -> None:
        self._model, self._max_tokens = model, max_tokens

    def judge(self, problems: Sequence[Problem], answers: Sequence[Sequence[str]]) -> list[list[Verdict]]:
        """A verdict for each answer's text to each problem; equal cases are judged once. Call 2 is made only where
        call 1 is not readable.

        A case that is too long for the engine has no accuracy, and what the engine said for its text.
        """
        cases = [
            [(problem.question, problem.label, text) for text in texts]
            for problem, texts in zip(problems, answers, strict=True)
        ]
        distinct = list(dict.fromkeys(case for group in cases for case in group))
        replies = self._ask([evaluation_messages(*case) for case in distinct])
        scores = [None if isinstance(reply, Refused) else parse_evaluation(reply) for reply in replies]
        unread = {
            index: reply
            for index, (reply, score) in enumerate(zip(replies, scores, strict=True))
            if isinstance(reply, str) and score is None
        }
        second = self._ask([parsing_messages(reply) for reply in unread.values()])
        for index, reply in zip(unread, second, strict=True):
            scores[index] = None if isinstance(reply, Refused) else parse_score(reply)
        verdicts = {
            case: Verdict(accuracy=score, text=reply.reason if isinstance(reply, Refused) else reply)
            for case, score, reply in zip(distinct, scores, replies, strict=True)
        }
        return [[verdicts[case] for case in group] for group in cases]

    def _ask(self, conversations: list) -> list[str | Refused]:
        if not conversations:
            return []
        drawn = self._model.engine.generate_greedy(self._model.text_prompts(conversations), self._max_tokens)
        return [one if isinstance(one, Refused) else self._model.chat.decode(one) for one in drawn]
