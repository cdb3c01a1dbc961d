import math
from typing import Any

import pytest

from masters_ray.evaluate import Marked, accuracy, answered_by_all, change, wilson
from masters_ray.records import Refused


def marked(right: str, kind: str = "a") -> list[Marked]:
    """A question for each letter: r for right, w for wrong, - for a refused one."""
    usual: dict[str, Any] = {"kind": kind, "label": "red", "answer": "", "finish": "stop"}
    refusals = {"-": Refused(reason="too long")}
    return [
        Marked(id=f"{kind}{number}", correct=one == "r", refused=refusals.get(one), **usual)
        for number, one in enumerate(right)
    ]


def test_wilsons_interval_of_the_docstring_and_that_of_none_and_of_all_holds_them_exactly() -> None:
    rate = wilson(8, 10)
    assert (rate.value, rate.n) == (0.8, 10)
    assert (rate.low, rate.high) == (pytest.approx(0.490, abs=1e-3), pytest.approx(0.943, abs=1e-3))
    assert all(wilson(0, n).low == 0.0 and wilson(n, n).high == 1.0 for n in range(1, 200))


def test_the_balanced_mean_is_not_swayed_by_how_often_a_kind_is_asked() -> None:
    measured = accuracy([*marked("r" * 90), *marked("w" * 10, "b")])
    assert (measured.value, measured.n) == (0.5, 100)
    assert (measured.by_kind["a"].value, measured.by_kind["b"].value) == (1.0, 0.0)
    assert measured.low < 0.5 < measured.high


def test_models_are_compared_on_the_questions_that_all_of_them_were_asked() -> None:
    compared = answered_by_all({"teacher": marked("r-rr"), "student": marked("wr-r")})
    assert [[one.id for one in compared[name]] for name in ("teacher", "student")] == [["a0", "a3"]] * 2
    assert {name: accuracy(rows).value for name, rows in compared.items()} == {"teacher": 1.0, "student": 0.5}
    nothing = accuracy([])
    assert (math.isnan(nothing.value), math.isnan(nothing.high), nothing.n) == (True, True, 0)


def test_four_times_as_many_questions_halve_the_interval() -> None:
    few, many = (accuracy(marked("rw" * (questions // 2))) for questions in (100, 400))
    assert many.high - many.low == pytest.approx(2 * 1.96 * (0.25 / 404) ** 0.5, rel=1e-3)
    assert few.high - few.low == pytest.approx(2 * 1.96 * (0.25 / 104) ** 0.5, rel=1e-3)


def test_the_paired_change_of_the_docstring_by_hand() -> None:
    """Of 10 questions 4 improved and 1 regressed. Widened: p = 4.5/12, q = 1.5/12, variance (p + q − (p − q)²)/12."""
    found = change(marked("wwwwrrrrrw"), marked("rrrrwrrrrw"))
    assert (found.improved, found.regressed, found.n) == (4, 1, 10)
    half = 1.959964 * ((0.375 + 0.125 - 0.25**2) / 12) ** 0.5
    assert (found.value, found.low, found.high) == pytest.approx((0.3, 0.3 - half, 0.3 + half))
    assert (round(found.low, 3), round(found.high, 3)) == (-0.074, 0.674)
    assert not found.settled


def test_the_change_is_the_mean_over_kinds_and_its_interval_has_a_width_without_any_change() -> None:
    """Kind a: 2 questions, both improve. Kind b: 8 questions, none changes."""
    before = [*marked("ww"), *marked("rrrrwwww", "b")]
    found = change(before, [*marked("rr"), *marked("rrrrwwww", "b")])
    of_a = (2.5 / 4 + 0.5 / 4 - 0.5**2) / 4
    of_b = (0.5 / 10 + 0.5 / 10) / 10
    half = 1.959964 * (of_a + of_b) ** 0.5 / 2
    assert (found.value, found.low, found.high) == pytest.approx((0.5, 0.5 - half, 0.5 + half))
    still = change(before, before)
    assert (still.value, still.improved, still.regressed) == (0.0, 0, 0)
    assert still.high == -still.low > 0.1
    assert change(before, before[::-1]) == still, "questions are paired by their ids"
    assert math.isnan(change([], []).low)
