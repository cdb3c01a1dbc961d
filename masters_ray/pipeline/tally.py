"""Counts over the answers of a stage, which add up batch by batch and call by call."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, get_args

from masters_ray.config import Rule
from masters_ray.marking import RULES
from masters_ray.masks import MaskReport
from masters_ray.records import JudgedAnswer, Problem, RolloutGroup, Source, StageOutcome
from masters_ray.schedule import Stage


@dataclass(frozen=True, kw_only=True)
class Tally:
    """Sums; two of them can be added."""

    rows: int = 0
    answers: int = 0
    unjudged: int = 0
    empty: int = 0
    """Answers without a word."""
    agreements: int = 0
    """Judged answers on which judge and exact rule say the same."""
    teacher_judged: int = 0
    teacher_right: int = 0
    student_judged: int = 0
    student_right: int = 0
    reasoning_judged: int = 0
    reasoning_right: int = 0
    tokens: int = 0
    """Scored tokens of stored answers."""
    left_out: float = 0.0
    """Their teacher mass outside the top k, summed."""

    @classmethod
    def of(
        cls,
        judged: Iterable[tuple[Problem, Sequence[JudgedAnswer]]],
        rule: Rule,
        *,
        rows: int,
        tokens: int,
        left_out: float,
    ) -> Tally:
        """The counts of one batch: its judged answers, and the rows, tokens and left-out mass of what is stored."""
        everything = [(problem, one) for problem, answers in judged for one in answers]
        readable = [(problem, one) for problem, one in everything if one.accuracy is not None]
        by_source = {
            f"{source}_{name}": sum(value(one) for _, one in readable if one.answer.source == source)
            for source in get_args(Source)
            for name, value in (("judged", lambda _: 1), ("right", lambda one: one.accuracy))
        }
        return cls(
            rows=rows,
            answers=len(everything),
            unjudged=len(everything) - len(readable),
            empty=sum(not one.answer.text for _, one in everything),
            agreements=sum(one.accuracy == RULES[rule](one.answer.text, problem) for problem, one in readable),
            reasoning_judged=sum(one.reasoning is not None for _, one in everything),
            reasoning_right=sum(one.reasoning or 0 for _, one in everything),
            **by_source,
            tokens=tokens,
            left_out=left_out,
        )

    @classmethod
    def of_stored(cls, groups: Sequence[RolloutGroup], rule: Rule) -> Tally:
        """The counts of rows that were made elsewhere."""
        scored = [answer for group in groups for answer in group.answers]
        return cls.of(
            [(group.problem, [answer.judged for answer in group.answers]) for group in groups],
            rule,
            rows=len(groups),
            tokens=sum(len(one.teacher.left_out) for one in scored),
            left_out=float(sum(one.teacher.left_out.sum() for one in scored)),
        )

    @classmethod
    def total(cls, parts: Iterable[Mapping[str, Any]]) -> Tally:
        """The sum of tallies that were noted as plain values."""
        total = cls()
        for part in parts:
            total += cls(**part)
        return total

    def __add__(self, other: Tally) -> Tally:
        theirs = asdict(other)
        return Tally(**{name: value + theirs[name] for name, value in asdict(self).items()})

    def note(self) -> str:
        """For the progress line."""
        return "  ".join(f"{source} right {rate:.0%}" for source, rate in self._rates().items())

    def outcome(self, stage: Stage, report: MaskReport, seconds: float, set_aside: Mapping[str, int]) -> StageOutcome:
        """What the stage says of itself when it is finished."""
        return StageOutcome(
            stage=stage.index,
            ratio=stage.ratio,
            sparsity=report.sparsity,
            masked=report.masked,
            unmasked=report.unmasked,
            teacher_digest=report.digest,
            rows=self.rows,
            seconds=seconds,
            answers=self.answers,
            unjudged=self.unjudged,
            empty=self.empty,
            set_aside=dict(set_aside),
            judge_rule_agreements=self.agreements,
            accuracy_by_source=self._rates(),
            reasoning=self.reasoning_right / self.reasoning_judged if self.reasoning_judged else None,
            left_out=self.left_out / self.tokens if self.tokens else 0.0,
        )

    def _rates(self) -> dict[str, float]:
        counts = {
            "teacher": (self.teacher_right, self.teacher_judged),
            "student": (self.student_right, self.student_judged),
        }
        return {source: right / judged for source, (right, judged) in counts.items() if judged}
