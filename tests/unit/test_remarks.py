import dataclasses

import pytest

from masters_ray import remarks
from masters_ray.records import AnswerTally


def compared(both: int, judge: int, rule: int, neither: int) -> AnswerTally:
    """Answers that both call right, only one does, and neither does."""
    return AnswerTally(
        compared=both + judge + rule + neither,
        judge_right=both + judge,
        rule_right=both + rule,
        judge_rule_agreements=both + neither,
    )


@pytest.mark.parametrize(
    ("counts", "told"),
    [
        (compared(0, 269, 0, 211), "the judge calls 56.0% right, the rule 0.0%"),
        (compared(200, 30, 40, 60), "differ on 21.2% of 330 answers (95 % interval 17.1% to 25.9%)"),
    ],
)
def test_a_disagreement_is_told_when_its_interval_lies_above_a_tenth(counts: AnswerTally, told: str) -> None:
    found = remarks.disagreement("stage 0", counts, "exact")
    assert found.startswith("stage 0: the judge and the rule (exact) differ") and told in found
    assert "masters-ray judge-audit" in found


def test_an_interval_that_reaches_down_to_a_tenth_may_be_chance() -> None:
    for counts in (compared(200, 0, 40, 60), compared(9, 1, 1, 9), compared(0, 0, 0, 10), compared(0, 0, 0, 0)):
        assert remarks.disagreement("stage 0", counts, "exact") == ""


def test_few_cut_answers_are_not_spoken_of() -> None:
    counts = AnswerTally(teacher_written=100, teacher_cut=5, student_written=100, student_cut=6)
    assert remarks.cut("stage 1", counts).startswith("stage 1: 6.0% of the student's answers are cut")
    assert remarks.cut("stage 1", dataclasses.replace(counts, student_cut=5)) == ""
    assert remarks.held_out_cut(0.051, 64).startswith("5.1% of the held-out answers are cut at 64 tokens")
    assert remarks.held_out_cut(0.05, 64) == ""
