"""Counts the answers of batches, and stops a stage that passes its limits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import get_args

from masters_ray.config import Judge, Rollout
from masters_ray.errors import DataError
from masters_ray.method.marking import RULES
from masters_ray.method.prompts import defused, ground_truth, with_choices
from masters_ray.records import AnswerTally, JudgedAnswer, Problem, Rejected, RolloutGroup, Source

_ENOUGH_ANSWERS = 400
"""Number of answers from which on their shares are compared with the limits."""
_EXAMPLES = 3


def tally(
    judged: Sequence[tuple[Problem, Sequence[JudgedAnswer]]],
    judge: Judge,
    *,
    rows: int,
    tokens: int,
    tail_mass_sum: float,
) -> AnswerTally:
    """Counts a batch's judged answers and stored rows. judge: who judged, and the rule to compare with."""
    everything = [(problem, one) for problem, answers in judged for one in answers]
    by_source: dict[str, int] = {}
    for source in get_args(Source):
        own = [one for _, one in everything if one.answer.source == source]
        by_source |= {
            f"{source}_written": len(own),
            f"{source}_cut": sum(one.answer.finish == "length" for one in own),
            f"{source}_judged": sum(one.accuracy is not None for one in own),
            f"{source}_right": sum(one.accuracy or 0 for one in own),
        }
    by_model = {source for source in get_args(Source) if getattr(judge, f"of_{source}") != "rule"}
    compared = [
        (one.accuracy, int(RULES[judge.rule](one.answer.text, problem)))
        for problem, one in everything
        if one.accuracy is not None and one.answer.source in by_model
    ]
    return AnswerTally(
        rows=rows,
        answers=len(everything),
        unjudged=sum(one.accuracy is None for _, one in everything),
        empty=sum(not one.answer.text for _, one in everything),
        compared=len(compared),
        judge_right=sum(accuracy for accuracy, _ in compared),
        rule_right=sum(by_rule for _, by_rule in compared),
        judge_rule_agreements=sum(accuracy == by_rule for accuracy, by_rule in compared),
        defused_answers=sum(_is_defused(one.answer.text) for _, one in everything),
        defused_questions=sum(_is_defused(with_choices(one) + ground_truth(one)) for one, _ in judged),
        reasoning_judged=sum(one.reasoning is not None for _, one in everything),
        reasoning_right=sum(one.reasoning or 0 for _, one in everything),
        tokens=tokens,
        tail_mass_sum=tail_mass_sum,
        **by_source,
    )


def tally_of_stored(groups: Sequence[RolloutGroup], judge: Judge) -> AnswerTally:
    """Counts rows that were taken over."""
    scored = [answer for group in groups for answer in group.answers]
    return tally(
        [(group.problem, [answer.judged for answer in group.answers]) for group in groups],
        judge,
        rows=len(groups),
        tokens=sum(len(one.teacher.left_out) for one in scored),
        tail_mass_sum=float(sum(one.teacher.left_out.sum() for one in scored)),
    )


def _is_defused(text: str) -> bool:
    return defused(text) != text


class Limits:
    """The limits of a stage, compared with its counts after every batch."""

    def __init__(self, rollout: Rollout, questions: int, folder: str) -> None:
        self._rollout, self._questions, self._folder = rollout, questions, folder
        self._examples: dict[str, list[Rejected]] = {}
        self.set_aside: Counter[str] = Counter()
        """Number of questions without a row, by kind of rejection."""

    def look(self, rejected: Iterable[Rejected], tally: AnswerTally, *, finished: bool = False) -> None:
        """Raises DataError with counts and examples when a limit is passed. rejected: further questions without a row.
        finished: all questions were asked, so shares of answers are compared however few answers there are."""
        for one in rejected:
            self.set_aside[one.kind] += 1
            if self.set_aside[one.kind] <= _EXAMPLES:
                self._examples.setdefault(one.kind, []).append(one)
        allowed = self._rollout.max_set_aside_share
        if self.set_aside.total() > allowed * self._questions:
            raise DataError(self._told(allowed))
        if tally.answers < _ENOUGH_ANSWERS and not finished:
            return
        cut = f"are cut at rollout.sampling.max_tokens = {self._rollout.sampling.max_tokens}"
        more = "A larger one gives them more room, in another run.dir. "
        for name, count, answers, key, remedy in (
            ("could not be judged", tally.unjudged, tally.answers, "max_unjudged_share", ""),
            ("have no word", tally.empty, tally.answers, "max_empty_share", ""),
            (f"of the teacher {cut}", tally.teacher_cut, tally.teacher_written, "max_cut_share", more),
            (f"of the student {cut}", tally.student_cut, tally.student_written, "max_cut_share", more),
        ):
            allowed = getattr(self._rollout, key)
            if count > allowed * answers:
                raise DataError(
                    f"{self._folder}: {count} of {answers} answers {name}; rollout.{key} allows {allowed:g}. "
                    f"{remedy}Look at them with: masters-ray store verify {self._folder}. If that is what you want, "
                    f"raise rollout.{key}, and call again: what is stored stays."
                )

    def _told(self, allowed: float) -> str:
        lines = [
            f"  {kind}, {self.set_aside[kind]} times. {one.row}: {one.reason}"
            for kind, examples in self._examples.items()
            for one in examples
        ]
        return "\n".join(
            [
                f"{self._folder}: {self.set_aside.total()} of {self._questions} questions were set aside; "
                f"rollout.max_set_aside_share allows {allowed:g}. The first of each kind:",
                *lines,
                "Mend what they name and choose another run.dir (rollout.reuse takes over the rows made here), "
                "or raise rollout.max_set_aside_share and call again: what is stored stays.",
            ]
        )
