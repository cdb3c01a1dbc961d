"""Who judges what."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from masters_ray import store
from masters_ray.config import Judge, JudgedBy
from masters_ray.pipeline import rollouts
from masters_ray.pipeline.judging import judge_answers
from masters_ray.records import Answer, JudgedAnswer
from tests.builders import problem
from tests.fakes import FakePool, FakeReplicas
from tests.unit.test_rollouts import PROBLEMS, recipe


def answers(*texts: str) -> list[Answer]:
    return [Answer(source="student", text=text, token_ids=(5, 1), finish="stop") for text in texts]


BEFORE = JudgedAnswer(answer=answers("blue")[0], accuracy=1, verdict="before")


@pytest.mark.parametrize("known", [[], [BEFORE]])
def test_a_judge_is_asked_once_for_each_text_of_a_question_that_it_has_not_judged(known: list[JudgedAnswer]) -> None:
    pool, two = FakePool("judge"), [problem(id="a"), problem(id="b")]
    pools: Any = {"judge": pool}
    found = judge_answers(Judge(), pools, two, two, [answers("red", "blue", "red"), answers("blue")], [[], known])
    assert [[one.accuracy for one in own] for own in found] == [[1, 0, 1], [1 if known else 0]]
    assert pool.judged == ["red", "blue", *([] if known else ["blue"])]


STUDENT_SAYS: dict[str, int | None] = {"red": 1, "blue": 1}
TEACHER_SAYS: dict[str, int | None] = {"red": 0, "blue": 1}
"""And the rule, whose label is red, calls red right and blue wrong."""


@pytest.mark.parametrize(
    ("of_teacher", "of_student", "verdicts", "student_asked", "teacher_asked"),
    [
        ("student", "student", [1, 1, 1, 1], ["red", "blue"], []),
        ("teacher", "teacher", [0, 1, 0, 1], [], ["red", "blue"]),
        ("teacher", "student", [0, 1, 1, 1], ["red", "blue"], ["red", "blue"]),
        ("student", "teacher", [1, 1, 0, 1], ["red", "blue"], ["red", "blue"]),
        ("rule", "student", [1, 0, 1, 1], ["red", "blue"], []),
    ],
)
def test_the_answers_of_each_source_go_to_their_own_judge(
    of_teacher: JudgedBy,
    of_student: JudgedBy,
    verdicts: list[int],
    student_asked: list[str],
    teacher_asked: list[str],
    tmp_path: Path,
) -> None:
    judge, teacher = FakePool("judge", STUDENT_SAYS), FakePool("teacher_judge", TEACHER_SAYS)
    replicas: Any = FakeReplicas(judge=judge, teacher_judge=teacher)
    made: Any = recipe(judge=Judge(of_teacher=of_teacher, of_student=of_student))
    rollouts.roll_out(made, PROBLEMS, range(5), replicas, tmp_path)  # type: ignore[arg-type]
    assert [[one.judged.accuracy for one in row.answers] for row in store.read(tmp_path)] == [verdicts] * 5
    assert (judge.judged, teacher.judged) == (student_asked * 5, teacher_asked * 5)


def test_stored_verdicts_come_back_as_they_were(tmp_path: Path) -> None:
    replicas: Any = FakeReplicas()
    rollouts.roll_out(recipe(judge=Judge(reasoning=True)), PROBLEMS, range(1), replicas, tmp_path)  # type: ignore[arg-type]
    found = [(one.source, one.text, one.accuracy, one.verdict, one.reasoning) for one in store.read_judged(tmp_path)]
    assert found == [
        (source, text, right, "said", right)
        for source in ("teacher", "student")
        for text, right in (("red", 1), ("blue", 0))
    ]
