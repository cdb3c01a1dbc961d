"""Counts the answers of batches, and stops a stage that passes its limits."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

from masters_ray.config import Judge, Rollout
from masters_ray.errors import DataError
from masters_ray.method.marking import RULES
from masters_ray.method.prompts import defused, ground_truth, with_choices
from masters_ray.records import AnswerTally, JudgedAnswer, Problem, Rejected, RolloutGroup, Source

_ENOUGH_ANSWERS = 400
"""Number of answers from which on their shares are compared with the limits."""
_EXAMPLES = 5


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
    questions = [with_choices(problem) + ground_truth(problem) for problem, _ in judged]
    by_source: dict[str, int] = {}
    for source in get_args(Source):
        own = [one for _, one in everything if one.answer.source == source]
        by_source |= {
            f"{source}_written": len(own),
            f"{source}_cut": sum(one.answer.finish == "length" for one in own),
            f"{source}_judged": sum(one.accuracy is not None for one in own),
            f"{source}_right": sum(one.accuracy or 0 for one in own),
        }
    compared = [
        (one.accuracy, int(RULES[judge.rule](one.answer.text, problem)))
        for problem, one in everything
        if one.accuracy is not None and getattr(judge, f"of_{one.answer.source}") != "rule"
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
        defused_answers=sum(defused(one.answer.text) != one.answer.text for _, one in everything),
        defused_questions=sum(defused(text) != text for text in questions),
        reasoning_judged=sum(one.reasoning is not None for _, one in everything),
        reasoning_right=sum(one.reasoning or 0 for _, one in everything),
        tokens=tokens,
        tail_mass_sum=tail_mass_sum,
        **by_source,
    )


def tally_of_stored(groups: Sequence[RolloutGroup], judge: Judge) -> AnswerTally:
    """Counts rows that were taken over."""
    tails = [answer.teacher.left_out for group in groups for answer in group.answers]
    return tally(
        [(group.problem, [answer.judged for answer in group.answers]) for group in groups],
        judge,
        rows=len(groups),
        tokens=sum(map(len, tails)),
        tail_mass_sum=float(sum(one.sum() for one in tails)),
    )


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The limits of a stage, compared with its counts after every batch."""

    rollout: Rollout
    questions: int
    folder: str

    def check(self, rejected: Sequence[Rejected], tally: AnswerTally, *, finished: bool = False) -> None:
        """Raises DataError with counts and examples when a limit is passed. rejected: all questions without a row.
        finished: all questions were asked, so shares of answers are compared however few answers there are."""
        if len(rejected) > self.rollout.max_set_aside_share * self.questions:
            kinds = ", ".join(f"{kind} {count}" for kind, count in Counter(one.kind for one in rejected).items())
            examples = "".join(f"\n  {one.kind}. {one.row}: {one.reason}" for one in rejected[:_EXAMPLES])
            raise DataError(
                f"{self.folder}: {len(rejected)} of {self.questions} questions were set aside ({kinds}); "
                f"rollout.max_set_aside_share allows {self.rollout.max_set_aside_share:g}. The first:{examples}\nMend "
                "what they name and choose another run.dir (rollout.reuse takes over the rows made here), or raise "
                "rollout.max_set_aside_share and call again: what is stored stays."
            )
        if tally.answers < _ENOUGH_ANSWERS and not finished:
            return
        cut = f"are cut at rollout.sampling.max_tokens = {self.rollout.sampling.max_tokens}"
        for key, count, answers, told in (
            ("max_unjudged_share", tally.unjudged, tally.answers, "could not be judged"),
            ("max_empty_share", tally.empty, tally.answers, "have no word"),
            ("max_cut_share", tally.teacher_cut, tally.teacher_written, f"of the teacher {cut}"),
            ("max_cut_share", tally.student_cut, tally.student_written, f"of the student {cut}"),
        ):
            allowed = getattr(self.rollout, key)
            if count > allowed * answers:
                raise DataError(
                    f"{self.folder}: {count} of {answers} answers {told}; rollout.{key} allows {allowed:g}. Look at "
                    f"them with: masters-ray store verify {self.folder}. Change what makes them, in another run.dir, "
                    f"or raise rollout.{key} and call again: what is stored stays."
                )
