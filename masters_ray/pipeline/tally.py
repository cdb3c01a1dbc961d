"""Counts over the answers of a stage, which add up batch by batch and call by call."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, get_args

from masters_ray.config import Judge
from masters_ray.marking import RULES
from masters_ray.masks import MaskReport
from masters_ray.prompts import defused, ground_truth, with_choices
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
    compared: int = 0
    """Answers that a model has judged readably, and the rule as well; of these the next three are."""
    judge_right: int = 0
    rule_right: int = 0
    judge_rule_agreements: int = 0
    """Both say the same."""
    defused_answers: int = 0
    """Answers that hold tags of a judge's prompts."""
    defused_questions: int = 0
    teacher_written: int = 0
    teacher_cut: int = 0
    student_written: int = 0
    student_cut: int = 0
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
        judge: Judge,
        *,
        rows: int,
        tokens: int,
        left_out: float,
    ) -> Tally:
        """The counts of one batch: its judged answers, and the rows, tokens and left-out mass of what is stored. judge:
        who judged them, and the rule to compare them with."""
        groups = list(judged)
        everything = [(problem, one) for problem, answers in groups for one in answers]
        readable = [(problem, one) for problem, one in everything if one.accuracy is not None]
        by_source: dict[str, int] = {}
        for source in get_args(Source):
            written = [one for _, one in everything if one.answer.source == source]
            by_source |= {
                f"{source}_written": len(written),
                f"{source}_cut": sum(one.answer.finish == "length" for one in written),
                f"{source}_judged": sum(one.accuracy is not None for one in written),
                f"{source}_right": sum(one.accuracy or 0 for one in written),
            }
        by_model = {source for source in get_args(Source) if getattr(judge, f"of_{source}") != "rule"}
        compared = [
            (one.accuracy, int(RULES[judge.rule](one.answer.text, problem)))
            for problem, one in readable
            if one.answer.source in by_model
        ]
        return cls(
            rows=rows,
            answers=len(everything),
            unjudged=len(everything) - len(readable),
            empty=sum(not one.answer.text for _, one in everything),
            compared=len(compared),
            judge_right=sum(judged or 0 for judged, _ in compared),
            rule_right=sum(by_rule for _, by_rule in compared),
            judge_rule_agreements=sum(judged == by_rule for judged, by_rule in compared),
            defused_answers=sum(_is_defused(one.answer.text) for _, one in everything),
            defused_questions=sum(_is_defused(with_choices(one) + ground_truth(one)) for one, _ in groups),
            reasoning_judged=sum(one.reasoning is not None for _, one in everything),
            reasoning_right=sum(one.reasoning or 0 for _, one in everything),
            **by_source,
            tokens=tokens,
            left_out=left_out,
        )

    @classmethod
    def of_stored(cls, groups: Sequence[RolloutGroup], judge: Judge) -> Tally:
        """The counts of rows that were made elsewhere."""
        scored = [answer for group in groups for answer in group.answers]
        return cls.of(
            [(group.problem, [answer.judged for answer in group.answers]) for group in groups],
            judge,
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
        cut = {source: f", {share:.0%} cut" for source, share in self.cut_by_source.items() if share}
        return "  ".join(f"{source} right {rate:.0%}{cut.get(source, '')}" for source, rate in self._rates().items())

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
            cut_by_source=self.cut_by_source,
            compared=self.compared,
            judge_right=self.judge_right,
            rule_right=self.rule_right,
            judge_rule_agreements=self.judge_rule_agreements,
            defused_answers=self.defused_answers,
            defused_questions=self.defused_questions,
            accuracy_by_source=self._rates(),
            reasoning=self.reasoning_right / self.reasoning_judged if self.reasoning_judged else None,
            left_out=self.left_out / self.tokens if self.tokens else 0.0,
        )

    @property
    def cut_by_source(self) -> dict[str, float]:
        """Share of the answers of each source that were cut."""
        counts = {
            "teacher": (self.teacher_cut, self.teacher_written),
            "student": (self.student_cut, self.student_written),
        }
        return {source: cut / written for source, (cut, written) in counts.items() if written}

    def _rates(self) -> dict[str, float]:
        counts = {
            "teacher": (self.teacher_right, self.teacher_judged),
            "student": (self.student_right, self.student_judged),
        }
        return {source: right / judged for source, (right, judged) in counts.items() if judged}


def _is_defused(text: str) -> bool:
    return defused(text) != text
