"""Judges answers: an accuracy reward in at most two model calls (METHOD 4, appendix section D)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from masters_ray.method import prompts
from masters_ray.records import Refused, Reply

Ask = Callable[[Sequence[Sequence[prompts.Message]]], list[Reply | Refused]]
"""Conversations without pictures → the model's greedy answers, so that equal cases get equal verdicts."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    accuracy: int | None  # R_acc, 0 or 1; None: neither call was readable
    text: str  # the reply to the first call, or the engine's reason to refuse it
    reasoning: int | None = None
    """R_rea: whether the reasoning supports the answer, 0 or 1; None: not asked, or neither call was readable."""
    tokens: int = 0
    """Tokens of all replies; 0 for the verdict of an equal case."""


def judge(
    ask: Ask, problems: Sequence[prompts.Asked], answers: Sequence[Sequence[str]], reasoning: bool
) -> list[list[Verdict]]:
    """Returns a verdict for each answer of each problem; equal cases are judged once. reasoning: judge R_rea too.

    A case that the engine refuses (too long) has accuracy None and the engine's reason as its text."""
    cases = [
        [(prompts.with_choices(problem), prompts.ground_truth(problem), text) for text in texts]
        for problem, texts in zip(problems, answers, strict=True)
    ]
    distinct = list(dict.fromkeys(case for group in cases for case in group))
    accuracies = _scores(ask, prompts.EVALUATION, distinct, prompts.PARSING)
    supports: list[tuple[int | None, str, int]] = [(None, "", 0)] * len(distinct)
    if reasoning:
        inserted = [(question, text) for question, _, text in distinct]
        supports = _scores(ask, prompts.REASONING, inserted, prompts.REASONING_PARSING)
    verdicts = {
        case: Verdict(accuracy=accuracy, text=said, reasoning=support, tokens=first + second)
        for case, (accuracy, said, first), (support, _, second) in zip(distinct, accuracies, supports, strict=True)
    }

    def take(case: tuple[str, str, str]) -> Verdict:
        taken = verdicts[case]
        verdicts[case] = replace(taken, tokens=0)
        return taken

    return [[take(case) for case in group] for group in cases]


def _scores(
    ask: Ask, first: prompts.JudgePrompt, inserted: Sequence[tuple[str, ...]], second: prompts.JudgePrompt
) -> list[tuple[int | None, str, int]]:
    """Returns (score 0 or 1, None: unreadable; first reply; tokens of all replies) of each. ``second`` parses
    unreadable first replies."""
    replies = ask([first.messages(*texts) for texts in inserted])
    found = [
        (first.score(one.text), one.text, one.tokens) if isinstance(one, Reply) else (None, one.reason, 0)
        for one in replies
    ]
    unread = [index for index, one in enumerate(replies) if isinstance(one, Reply) and found[index][0] is None]
    again = ask([second.messages(found[index][1]) for index in unread])
    for index, one in zip(unread, again, strict=True):
        score, more = (second.score(one.text), one.tokens) if isinstance(one, Reply) else (None, 0)
        found[index] = score, found[index][1], found[index][2] + more
    return found
