"""The judge: two calls that turn an answer into an accuracy reward (METHOD 4, appendix section D)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from masters_ray.actors.model import Model
from masters_ray.prompts import evaluation_messages, parse_evaluation, parse_score, parsing_messages


@dataclass(frozen=True, kw_only=True)
class Case:
    """What the judge is shown; it sees no picture."""

    question: str
    label: str
    answer: str


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

    def judge(self, cases: Sequence[Case]) -> list[Verdict]:
        """A verdict for each case; equal cases are judged once. Call 2 is made only where call 1 is not readable."""
        distinct = list(dict.fromkeys(cases))
        texts = self._ask([evaluation_messages(case.question, case.label, case.answer) for case in distinct])
        scores = [parse_evaluation(text) for text in texts]
        unread = [index for index, score in enumerate(scores) if score is None]
        for index, reply in zip(unread, self._ask([parsing_messages(texts[index]) for index in unread]), strict=True):
            scores[index] = parse_score(reply)
        verdicts = {
            case: Verdict(accuracy=score, text=text) for case, score, text in zip(distinct, scores, texts, strict=True)
        }
        return [verdicts[case] for case in cases]

    def _ask(self, conversations: list) -> list[str]:
        if not conversations:
            return []
        drawn = self._model.engine.generate_greedy(self._model.text_prompts(conversations), self._max_tokens)
        return [self._model.chat.decode(ids) for ids in drawn]
