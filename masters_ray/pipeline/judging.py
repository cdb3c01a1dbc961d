"""Which judge gives the verdicts on which answers, and their counts."""

from collections.abc import Mapping, Sequence
from typing import Any, get_args

import numpy as np
import pyarrow as pa

from masters_ray import store
from masters_ray.config import Judge, JudgedBy
from masters_ray.method.marking import RULES
from masters_ray.method.prompts import defused, ground_truth, with_choices
from masters_ray.records import Answer, AnswerTally, JudgedAnswer, Problem, Source
from masters_ray.replicas.judge import Verdict
from masters_ray.replicas.pool import Pool
from masters_ray.replicas.processes import Role

JUDGES: Mapping[JudgedBy, Role] = {"student": "judge", "teacher": "teacher_judge"}
"""Judging model → the role of its replicas."""


def judge_answers(
    settings: Judge,
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
    judge_of: dict[Source, JudgedBy] = {"teacher": settings.of_teacher, "student": settings.of_student}
    found = {
        (settings.of_student, index, one.answer.text): Verdict(
            accuracy=one.accuracy, text=one.verdict, reasoning=one.reasoning
        )
        for index, own in enumerate(known)
        for one in own
    }
    for judge, role in JUDGES.items():
        wanted = [dict.fromkeys(one.text for one in own if judge_of[one.source] == judge) for own in answers]
        texts = [[text for text in own if (judge, index, text) not in found] for index, own in enumerate(wanted)]
        if any(texts):
            said: list[list[Verdict]] = pools[role].call("judge", shared, texts, settings.reasoning)
            for index, own in enumerate(texts):
                found |= {(judge, index, text): one for text, one in zip(own, said[index], strict=True)}

    def judged(index: int, answer: Answer) -> JudgedAnswer:
        by = judge_of[answer.source]
        if by == "rule":
            right = RULES[settings.rule](answer.text, problems[index])
            return JudgedAnswer(answer=answer, accuracy=int(right), verdict=f"by rule ({settings.rule})")
        one = found[by, index, answer.text]
        return JudgedAnswer(answer=answer, accuracy=one.accuracy, verdict=one.text, reasoning=one.reasoning)

    return [[judged(index, one) for one in own] for index, own in enumerate(answers)]


def tally(judged: Sequence[tuple[Problem, Sequence[JudgedAnswer]]], judge: Judge, rows: pa.Table) -> AnswerTally:
    """Counts a batch's judged answers and its ``rows`` of store.SCHEMA."""
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
    scores = rows["answers"].combine_chunks().flatten()
    left_out = store.decoded(scores).left_out if len(scores) else np.empty(0, np.float32)
    return AnswerTally(
        rows=len(rows),
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
        tokens=len(left_out),
        tail_mass_sum=float(left_out.sum()),
        **by_source,
    )
