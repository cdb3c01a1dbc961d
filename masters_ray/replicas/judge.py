"""The judge: two calls that turn an answer into an accuracy reward (METHOD 4, appendix section D)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from masters_ray.method import prompts
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
    """Greedy, so that the same case has the same verdict."""

    def __init__(self, model: ReplicaModel, max_tokens: int) -> None:
        self._model, self._max_tokens = model, max_tokens

    def judge(
        self, problems: Sequence[Problem], answers: Sequence[Sequence[str]], reasoning: bool
    ) -> list[list[Verdict]]:
        """A verdict for each answer's text to each problem, on its reasoning too if wanted; equal cases once.

        A case that is too long for the engine has no accuracy, and what the engine said for its text.
        """
        cases = [
            [(prompts.with_choices(problem), prompts.ground_truth(problem), text) for text in texts]
            for problem, texts in zip(problems, answers, strict=True)
        ]
        distinct = list(dict.fromkeys(case for group in cases for case in group))
        accuracies = self._scores(prompts.EVALUATION, distinct, prompts.PARSING)
        supports: list[tuple[int | None, str]] = [(None, "")] * len(distinct)
        if reasoning:
            asked = [(question, text) for question, _, text in distinct]
            supports = self._scores(prompts.REASONING, asked, prompts.REASONING_PARSING)
        verdicts = {
            case: Verdict(accuracy=accuracy, text=said, reasoning=support)
            for case, (accuracy, said), (support, _) in zip(distinct, accuracies, supports, strict=True)
        }
        return [[verdicts[case] for case in group] for group in cases]

    def _scores(
        self, first: prompts.JudgePrompt, inserted: Sequence[tuple[str, ...]], second: prompts.JudgePrompt
    ) -> list[tuple[int | None, str]]:
        """The 0 or 1 that the first prompt gives of each of the inserted texts, and what was said. Only where it cannot
        be read, a second call is made, of what the judge said in the first."""
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
        said = [reply.reason if isinstance(reply, Refused) else reply for reply in replies]
        return list(zip(scores, said, strict=True))

    def _ask(self, conversations: list[list[prompts.Message]]) -> list[str | Refused]:
        said = self._model.reply(conversations, self._max_tokens) if conversations else []
        return [one if isinstance(one, Refused) else one.text for one in said]
