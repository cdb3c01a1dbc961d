"""Which judge gives the verdicts on which answers."""

from collections.abc import Mapping, Sequence
from typing import Any

from masters_ray.config import Judge, JudgedBy
from masters_ray.method.marking import RULES
from masters_ray.records import Answer, JudgedAnswer, Problem, Source
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
