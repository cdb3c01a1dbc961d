"""Accuracy on the held-out questions, with stand-ins for the replicas."""

from pathlib import Path

import pytest

from masters_ray.errors import DataError
from masters_ray.evaluate import refusals
from masters_ray.pipeline import held_out
from masters_ray.records import Rejected
from tests.builders import problem
from tests.fakes import FakePool


def test_held_out_answers_are_marked_by_rule_or_judge_in_their_order() -> None:
    problems = [problem(id=str(number)) for number in range(300)]
    student = FakePool("student")
    by_rule = held_out.evaluate(student, None, "exact", problems, 8, "t")  # type: ignore[arg-type]
    harsh = FakePool("judge", {"red": 0, "blue": None})
    by_judge = held_out.evaluate(student, harsh, "exact", problems, 8, "t")  # type: ignore[arg-type]
    assert [one.id for one in by_rule] == [str(number) for number in range(300)]
    assert [one.correct for one in by_rule] == [bool(number % 2) for number in range(300)]
    assert not any(one.correct for one in by_judge)
    assert [one.by_rule for one in by_judge] == [one.correct for one in by_rule]
    assert {one.by_rule for one in by_rule} == {None}


def test_a_judge_of_held_out_answers_that_differs_from_the_rule_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    problems = [problem(id=str(number)) for number in range(60)]
    kind = FakePool("judge", {"red": 1, "blue": 1})
    marked = held_out.evaluate(FakePool("student"), kind, "exact", problems, 8, "t")  # type: ignore[arg-type]
    held_out.say_accuracy("held-out accuracy of teacher", marked, 8, "exact")
    told = capsys.readouterr().out
    assert "held-out accuracy of teacher: the judge and the rule (exact) differ on 50.0% of 60 answers" in told
    assert "the judge calls 100.0% right, the rule 50.0%" in told
    few = held_out.evaluate(FakePool("student"), kind, "exact", problems[1:2], 8, "t")  # type: ignore[arg-type]
    held_out.say_accuracy("t", few, 8, "exact")
    assert "the rule" not in capsys.readouterr().out, "one answer says nothing"


def test_a_held_out_question_that_a_model_cannot_be_asked_is_no_wrong_answer_but_a_reason(tmp_path: Path) -> None:
    problems = [problem(id=str(number)) for number in range(4)]
    student = FakePool("student")
    student.refuses = {"1"}
    for judge in (None, FakePool("judge")):
        marked = held_out.evaluate(student, judge, "exact", problems, 8, "t")  # type: ignore[arg-type]
        assert [(one.correct, one.answer) for one in marked] == [
            (False, "blue"),
            (False, ""),
            (False, "blue"),
            (True, "red"),
        ]
        [refused] = refusals(marked)
        assert (refused.row, refused.reason, refused.kind) == ("held-out question 1", "too long", "engine")
        held_out.write_marks(tmp_path / "student.json", marked, "questions", "model")
        assert held_out.read_marks(tmp_path / "student.json") == marked


def test_held_out_answers_that_are_cut_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    student = FakePool("student")
    student.cuts, student.refuses = {"red"}, {"0"}
    problems = [problem(id=str(number)) for number in range(4)]
    held_out.say_accuracy("t", held_out.evaluate(student, None, "exact", problems, 8, "t"), 8, "exact")  # type: ignore[arg-type]
    told = capsys.readouterr().out
    assert "n = 3; 66.7% of the answers cut)" in told
    assert "66.7% of the held-out answers are cut at 8 tokens" in told


def test_too_many_held_out_questions_that_cannot_be_asked_stop_the_run_with_examples() -> None:
    aside = [Rejected(row=f"held-out question {number}", reason="too long", kind="engine") for number in range(2)]
    held_out.refuse_unasked(aside, 4, 0.5)
    with pytest.raises(DataError, match=r"2 of 4 .*max_set_aside_share allows 0.25.*\n  held-out question 0: too long"):
        held_out.refuse_unasked(aside, 4, 0.25)
    with pytest.raises(DataError, match="2 of 2 held-out"):
        held_out.refuse_unasked(aside, 2, 1.0)
