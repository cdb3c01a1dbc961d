"""Which judge gives the verdicts on which answers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from masters_ray.config import Judge, JudgedBy
from masters_ray.method.marking import RULES
from masters_ray.records import Answer, JudgedAnswer, Problem, Source
from masters_ray.replicas.judge import Verdict
from masters_ray.replicas.pool import Pool
from masters_ray.replicas.processes import Role

JUDGES: Mapping[JudgedBy, Role] = {"student": "judge", "teacher": "teacher_judge"}
"""Judging model → the role of its replicas."""


@dataclass(frozen=True, kw_only=True)
class Judging:
    """How the answers of a stage are judged, and by which models."""

    settings: Judge
    models: Mapping[JudgedBy, str]
    """Judging model → its identity: weights, prompt files and number format, independent of its role."""

    def by(self, source: Source) -> JudgedBy:
        """Returns who judges the answers of a source."""
        return self.settings.of_teacher if source == "teacher" else self.settings.of_student

    def identity(self, source: Source) -> str:
        """Returns the identity of the judge of a source: judges of equal identity give equal answers equal verdicts."""
        judge = self.by(source)
        if judge == "rule":
            return self.settings.rule
        return f"{self.models[judge]}, reasoning {self.settings.reasoning}, {self.settings.max_tokens} tokens"

    def judge(
        self,
        pools: Mapping[Role, Pool],
        problems: Sequence[Problem],
        shared: Any,
        answers: Sequence[Sequence[Answer]],
        known: Sequence[Sequence[JudgedAnswer]],
    ) -> list[list[JudgedAnswer]]:
        """Judges the answers to each problem; equal texts of a problem are judged once. Raises ReplicaLostError.

        shared: the problems as ``Pool.share`` returned them. known: for each problem, answers that the judge of the
        student's answers has judged before.
        """
        found = {
            (self.by("student"), index, one.answer.text): Verdict(
                accuracy=one.accuracy, text=one.verdict, reasoning=one.reasoning
            )
            for index, own in enumerate(known)
            for one in own
        }
        for judge, role in JUDGES.items():
            wanted = [dict.fromkeys(one.text for one in own if self.by(one.source) == judge) for own in answers]
            texts = [[text for text in own if (judge, index, text) not in found] for index, own in enumerate(wanted)]
            if any(texts):
                said: list[list[Verdict]] = pools[role].call("judge", shared, texts, self.settings.reasoning)
                for index, own in enumerate(texts):
                    found |= {(judge, index, text): one for text, one in zip(own, said[index], strict=True)}

        def judged(index: int, answer: Answer) -> JudgedAnswer:
            by = self.by(answer.source)
            if by == "rule":
                right = RULES[self.settings.rule](answer.text, problems[index])
                return JudgedAnswer(answer=answer, accuracy=int(right), verdict=f"by rule ({self.settings.rule})")
            one = found[by, index, answer.text]
            return JudgedAnswer(answer=answer, accuracy=one.accuracy, verdict=one.text, reasoning=one.reasoning)

        return [[judged(index, one) for one in own] for index, own in enumerate(answers)]
