"""Counting the answers of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

from masters_ray.config import Judge
from masters_ray.marking import RULES
from masters_ray.prompts import defused, ground_truth, with_choices
from masters_ray.records import AnswerTally, JudgedAnswer, Problem, RolloutGroup, Source


def tally(
    judged: Sequence[tuple[Problem, Sequence[JudgedAnswer]]],
    judge: Judge,
    *,
    rows: int,
    tokens: int,
    tail_mass_sum: float,
) -> AnswerTally:
    """Of a batch's judged answers, and of the rows that are stored. judge: who judged, and the rule to compare with."""
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
    """Of rows that were made elsewhere."""
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
