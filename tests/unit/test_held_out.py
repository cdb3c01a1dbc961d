from pathlib import Path

import pytest

from masters_ray.evaluate import Marked, refusals
from masters_ray.pipeline import held_out
from tests.builders import problem
from tests.fakes import FakePool


def marks(student: FakePool, judge: FakePool | None, questions: int) -> list[Marked]:
    """The student answers blue to even questions and red, which is right, to odd ones."""
    problems = [problem(id=str(number)) for number in range(questions)]
    return held_out.evaluate(student, judge, "exact", problems, 8, "t")  # type: ignore[arg-type]


def test_held_out_answers_are_marked_by_rule_or_judge_in_their_order() -> None:
    by_rule = marks(FakePool("student"), None, 300)
    by_judge = marks(FakePool("student"), FakePool("judge", {"red": 0, "blue": None}), 300)
    assert [(one.id, one.correct, one.by_rule) for one in by_rule] == [(str(n), bool(n % 2), None) for n in range(300)]
    assert [(one.correct, one.by_rule) for one in by_judge] == [(False, bool(n % 2)) for n in range(300)]


def test_a_judge_unlike_the_rule_and_cut_answers_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    student, kind = FakePool("student"), FakePool("judge", {"red": 1, "blue": 1})
    student.cuts, student.refuses = {"red"}, {"0"}
    held_out.say_accuracy("held-out accuracy of teacher", marks(student, kind, 61), 8, "exact")
    told = capsys.readouterr().out
    assert "n = 60; 50.0% of the answers cut)" in told
    assert "50.0% of the held-out answers are cut at 8 tokens" in told
    assert "held-out accuracy of teacher: the judge and the rule (exact) differ on 50.0% of 60 answers" in told
    assert "the judge calls 100.0% right, the rule 50.0%" in told


def test_a_held_out_question_that_a_model_cannot_be_asked_is_no_wrong_answer_but_a_reason(tmp_path: Path) -> None:
    student = FakePool("student")
    student.refuses = {"1"}
    for judge in (None, FakePool("judge")):
        marked = marks(student, judge, 4)
        told = [(False, "blue"), (False, ""), (False, "blue"), (True, "red")]
        assert [(one.correct, one.answer) for one in marked] == told
        [refused] = refusals(marked)
        assert (refused.row, refused.reason, refused.kind) == ("held-out question 1", "too long", "engine")
        held_out.write_marks(tmp_path / "student.json", marked, "questions", "model")
        assert held_out.read_marks(tmp_path / "student.json") == marked
