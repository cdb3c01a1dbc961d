"""Counts the answers of batches."""

from collections.abc import Sequence
from typing import get_args

import numpy as np
import pyarrow as pa

from masters_ray import store
from masters_ray.config import Judge
from masters_ray.method.marking import right
from masters_ray.method.prompts import defused, ground_truth, with_choices
from masters_ray.records import AnswerTally, JudgedAnswer, Problem, Source


def tally(judged: Sequence[tuple[Problem, Sequence[JudgedAnswer]]], judge: Judge, rows: pa.Table) -> AnswerTally:
    """Counts a batch's judged answers and its ``rows`` of store.SCHEMA."""
    everything = [(problem, one) for problem, answers in judged for one in answers]
    questions = [with_choices(problem) + ground_truth(problem) for problem, _ in judged]
    compared = [
        (one.answer.source, one.accuracy, int(right(one.answer.text, problem, judge.rule)))
        for problem, one in everything
        if one.accuracy is not None and judge.of(one.answer.source, problem.rule) != "rule"
    ]
    by_source: dict[str, int] = {}
    for source in get_args(Source):
        own = [one for _, one in everything if one.answer.source == source]
        by_source |= {
            f"{source}_written": len(own),
            f"{source}_cut": sum(one.answer.finish == "length" for one in own),
            f"{source}_judged": sum(one.accuracy is not None for one in own),
            f"{source}_right": sum(one.accuracy or 0 for one in own),
        }
    for prefix, by in (("", get_args(Source)), ("student_", ("student",))):
        marks = [(accuracy, by_rule) for source, accuracy, by_rule in compared if source in by]
        by_source |= {
            f"{prefix}compared": len(marks),
            f"{prefix}judge_right": sum(accuracy for accuracy, _ in marks),
            f"{prefix}rule_right": sum(by_rule for _, by_rule in marks),
            f"{prefix}judge_rule_agreements": sum(accuracy == by_rule for accuracy, by_rule in marks),
        }
    scores = rows["answers"].combine_chunks().flatten()
    left_out = store.decoded(scores).left_out if len(scores) else np.empty(0, np.float32)
    return AnswerTally(
        rows=len(rows),
        answers=len(everything),
        unjudged=sum(one.accuracy is None for _, one in everything),
        empty=sum(not one.answer.text for _, one in everything),
        defused_answers=sum(defused(one.answer.text) != one.answer.text for _, one in everything),
        defused_questions=sum(defused(text) != text for text in questions),
        reasoning_judged=sum(one.reasoning is not None for _, one in everything),
        reasoning_right=sum(one.reasoning or 0 for _, one in everything),
        tokens=len(left_out),
        tail_mass_sum=float(left_out.sum()),
        **by_source,
    )
