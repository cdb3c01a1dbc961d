"""Stand-ins for replicas, for tests of what is done with their answers."""

from __future__ import annotations

from typing import Any

import numpy as np

from masters_ray.actors.judge import Verdict
from masters_ray.masks import MaskReport
from masters_ray.records import Answer, Problem, Refused, Scored
from tests.builders import scores


class FakePool:
    """Replicas that answer "red" or "blue" and judge by what the test says."""

    def __init__(
        self, role: str, verdicts: dict[str, int | None] | None = None, reports: int = 1, digest: str = "digest"
    ) -> None:
        self.role = role
        self.calls: list[str] = []
        self.scored: list[tuple[int, ...]] = []
        self.refuses: set[str] = set()
        self.refuses_to_score: set[str] = set()
        self._verdicts = verdicts or {"red": 1, "blue": 0}
        self._reports = reports
        self._digest = digest

    @property
    def calls_at_once(self) -> int:
        return 2

    most_calls_at_once = calls_at_once

    def mask(self, ratio: float) -> list[MaskReport]:
        return [
            MaskReport(ratio=ratio, sparsity=ratio, matrices=1, digest=f"{self._digest} {number}")
            for number in range(self._reports)
        ]

    def call(self, method: str, *arguments: Any) -> Any:
        self.calls.append(method)
        self.before_call(method, arguments)
        return getattr(self, method)(*arguments)

    def call_again(self, method: str, *arguments: Any) -> Any:
        return self.call(method, *arguments)

    def share(self, thing: Any) -> Any:
        return thing

    def before_call(self, method: str, arguments: tuple[Any, ...]) -> None:
        """For a test to let a replica die."""

    def answer(self, problems: list[Problem], sampling: object, count: int, seeds: list[int]) -> list[Any]:
        return [self._written(problem, count) for problem in problems]

    def _written(self, problem: Problem, count: int) -> Any:
        if problem.id in self.refuses:
            return Refused(reason="too long")
        first = 5 if self.role == "teacher" else 6  # the student's first answer is the teacher's second
        answers = [
            Answer(source=self.role, text=("red", "blue")[index % 2], token_ids=(first + index, 1))  # type: ignore[arg-type]
            for index in range(count)
        ]
        return tuple((answer, self._scored(answer)) for answer in answers)

    def _scored(self, answer: Answer) -> Scored:
        return Scored(
            prompt_tokens=17,
            top=scores(len(answer.token_ids), seed=answer.token_ids[0]),
            own=np.full(len(answer.token_ids), -1.0 if self.role == "student" else -2.0, np.float32),
        )

    def judge(self, cases: list[Any]) -> list[Verdict]:
        return [Verdict(accuracy=self._verdicts[case.answer], text="said") for case in cases]

    def score(self, problems: list[Problem], answers: list[list[Answer]]) -> list[Any]:
        self.scored += [answer.token_ids for group in answers for answer in group]
        return [
            Refused(reason="too long") if problem.id in self.refuses_to_score else [self._scored(one) for one in group]
            for problem, group in zip(problems, answers, strict=True)
        ]

    def answer_greedily(self, problems: list[Problem], max_tokens: int) -> list[str]:
        return ["red" if int(problem.id) % 2 else "blue" for problem in problems]


class FakeReplicas:
    def __init__(self, **pools: FakePool) -> None:
        self.pools = {
            "teacher": FakePool("teacher"),
            "student": FakePool("student"),
            "judge": FakePool("judge"),
        } | pools
