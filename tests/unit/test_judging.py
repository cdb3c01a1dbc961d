"""Who judges what."""

from typing import Any

import pytest

from masters_ray.config import Judge, JudgedBy
from masters_ray.pipeline.judging import judge_answers
from masters_ray.records import Answer, JudgedAnswer, Source
from tests.builders import problem
from tests.fakes import FakePool


def answers(*texts: str, source: Source = "student") -> list[Answer]:
    return [Answer(source=source, text=text, token_ids=(5, 1), finish="stop") for text in texts]


BEFORE = JudgedAnswer(answer=answers("blue")[0], accuracy=1, verdict="before")


@pytest.mark.parametrize("known", [[], [BEFORE]])
def test_a_judge_is_asked_once_for_each_text_of_a_question_that_it_has_not_judged(known: list[JudgedAnswer]) -> None:
    pool, two = FakePool("judge"), [problem(id="a"), problem(id="b")]
    pools: Any = {"judge": pool}
    found = judge_answers(Judge(), pools, two, two, [answers("red", "blue", "red"), answers("blue")], [[], known])
    assert [[one.accuracy for one in own] for own in found] == [[1, 0, 1], [1 if known else 0]]
    assert pool.judged == ["red", "blue", *([] if known else ["blue"])]


BOTH = ["red", "blue"]


@pytest.mark.parametrize(
    ("of_teacher", "of_student", "verdicts", "student_asked", "teacher_asked"),
    [
        ("student", "student", [1, 1, 1, 1], BOTH, []),
        ("teacher", "teacher", [0, 1, 0, 1], [], BOTH),
        ("teacher", "student", [0, 1, 1, 1], BOTH, BOTH),
        ("student", "teacher", [1, 1, 0, 1], BOTH, BOTH),
        ("rule", "student", [1, 0, 1, 1], BOTH, []),
    ],
)
def test_the_answers_of_each_source_go_to_their_own_judge(
    of_teacher: JudgedBy, of_student: JudgedBy, verdicts: list[int], student_asked: list[str], teacher_asked: list[str]
) -> None:
    """The student calls all right, the teacher blue alone, and the rule, whose label is red, red alone."""
    student, teacher = FakePool("judge", {"red": 1, "blue": 1}), FakePool("teacher_judge", {"red": 0, "blue": 1})
    pools: Any = {"judge": student, "teacher_judge": teacher}
    written = [*answers(*BOTH, source="teacher"), *answers(*BOTH)]
    settings = Judge(of_teacher=of_teacher, of_student=of_student)
    [found] = judge_answers(settings, pools, [problem()], [problem()], [written], [[]])
    assert [(one.answer, one.accuracy) for one in found] == list(zip(written, verdicts, strict=True))
    assert (student.judged, teacher.judged) == (student_asked, teacher_asked)
