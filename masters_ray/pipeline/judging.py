"""Which judge gives the verdicts on which answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from masters_ray.config import Judge, JudgedBy
from masters_ray.method.marking import RULES
from masters_ray.records import Answer, Problem, Source
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

    def verdicts(
        self,
        pools: Mapping[Role, Pool],
        problems: Sequence[Problem],
        shared: Any,
        answers: Sequence[Sequence[Answer]],
        known: Sequence[Mapping[str, Verdict]],
    ) -> list[list[Verdict]]:
        """Returns a verdict for each answer to each problem; equal texts of a problem are judged once.

        shared: the problems as ``Pool.share`` returned them. known: for each problem, text → earlier verdict by the
        judge of the student's answers. Raises ReplicaLostError.
        """
        of_student = self.by("student")
        found = {(of_student, index, text): verdict for index, own in enumerate(known) for text, verdict in own.items()}
        for judge, role in JUDGES.items():
            wanted = [dict.fromkeys(one.text for one in own if self.by(one.source) == judge) for own in answers]
            texts = [[text for text in own if (judge, index, text) not in found] for index, own in enumerate(wanted)]
            if any(texts):
                said: list[list[Verdict]] = pools[role].call("judge", shared, texts, self.settings.reasoning)
                for index, own in enumerate(texts):
                    found |= {(judge, index, text): one for text, one in zip(own, said[index], strict=True)}
        return [
            [found.get((self.by(one.source), index, one.text)) or self._by_rule(problem, one.text) for one in own]
            for index, (problem, own) in enumerate(zip(problems, answers, strict=True))
        ]

    def _by_rule(self, problem: Problem, text: str) -> Verdict:
        right = RULES[self.settings.rule](text, problem)
        return Verdict(accuracy=int(right), text=f"by rule ({self.settings.rule})")
