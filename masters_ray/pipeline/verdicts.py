"""Who judges which answer; the same case is judged once."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from masters_ray.actors.host import Role
from masters_ray.actors.judge import Verdict
from masters_ray.actors.pool import Pool
from masters_ray.config import Judge, JudgedBy
from masters_ray.marking import RULES
from masters_ray.records import Answer, Problem

_REMEMBERED = 2**15
JUDGES: Mapping[JudgedBy, Role] = {"student": "judge", "teacher": "teacher_judge"}
"""Models that judge → the role that their replicas play."""


class _Case(NamedTuple):
    judge: JudgedBy
    question: str
    label: str
    text: str


class Verdicts:
    """Verdicts of answers to questions, by calls to the judges' pools; used by several threads at once.

    The last cases are remembered, over batches and stages.
    """

    def __init__(self, judge: Judge, pools: Mapping[Role, Pool]) -> None:
        self._judge, self._pools = judge, pools
        self._by: dict[str, JudgedBy] = {"teacher": judge.of_teacher, "student": judge.of_student}
        self._held: OrderedDict[_Case, Verdict] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, problems: Sequence[Problem], shared: Any, answers: Sequence[Sequence[Answer]]) -> list[list[Verdict]]:
        """A verdict for each answer to each problem. shared: the problems as ``Pool.share`` gave them. Raises
        ReplicaLostError."""
        cases = [
            [self._case(problem, answer) for answer in group] for problem, group in zip(problems, answers, strict=True)
        ]
        found = self._recalled({case for group in cases for case in group})
        for judge, role in JUDGES.items():
            texts = [
                list(dict.fromkeys(case.text for case in group if case.judge == judge and case not in found))
                for group in cases
            ]
            if any(texts):
                told: list[list[Verdict]] = self._pools[role].call("judge", shared, texts, self._judge.reasoning)
                news = {
                    _Case(judge, problem.question, problem.label, text): verdict
                    for problem, group, verdicts in zip(problems, texts, told, strict=True)
                    for text, verdict in zip(group, verdicts, strict=True)
                }
                found |= news
                self._remember(news)
        return [
            [self._by_rule(problem, case.text) if case.judge == "rule" else found[case] for case in group]
            for problem, group in zip(problems, cases, strict=True)
        ]

    def _case(self, problem: Problem, answer: Answer) -> _Case:
        return _Case(self._by[answer.source], problem.question, problem.label, answer.text)

    def _by_rule(self, problem: Problem, text: str) -> Verdict:
        right = RULES[self._judge.rule](text, problem)
        return Verdict(accuracy=int(right), text=f"by rule ({self._judge.rule})")

    def _recalled(self, cases: set[_Case]) -> dict[_Case, Verdict]:
        with self._lock:
            found = {case: self._held[case] for case in cases if case in self._held}
            for case in found:
                self._held.move_to_end(case)
        return found

    def _remember(self, news: Mapping[_Case, Verdict]) -> None:
        with self._lock:
            self._held.update(news)
            while len(self._held) > _REMEMBERED:
                self._held.popitem(last=False)
