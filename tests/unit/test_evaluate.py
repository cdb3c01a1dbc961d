import math

import pytest

from masters_ray.evaluate import Marked, accuracy, answered_by_all, mark, wilson
from masters_ray.method.marking import exact
from masters_ray.records import Problem, Refused, Reply
from tests.builders import problem


def test_wilsons_interval_of_the_docstring() -> None:
    rate = wilson(8, 10)
    assert (rate.value, rate.n) == (0.8, 10)
    assert (rate.low, rate.high) == (pytest.approx(0.490, abs=1e-3), pytest.approx(0.943, abs=1e-3))


def test_the_interval_of_none_and_of_all_holds_them_exactly() -> None:
    assert all(wilson(0, n).low == 0.0 and wilson(n, n).high == 1.0 for n in range(1, 200))


def test_a_share_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        wilson(0, 0)


def replies(*texts: str) -> list[Reply]:
    return [Reply(text=text, finish="stop") for text in texts]


def marked(problems: list[Problem], answers: list[str]) -> list[Marked]:
    return mark(
        problems, replies(*answers), [exact(text, problem) for text, problem in zip(answers, problems, strict=True)]
    )


def test_the_balanced_mean_is_not_swayed_by_how_often_a_kind_is_asked() -> None:
    problems = [problem(id=str(i), kind="a") for i in range(90)] + [problem(id=f"b{i}", kind="b") for i in range(10)]
    answers = ["red"] * 90 + ["blue"] * 10
    measured = accuracy(marked(problems, answers))
    assert measured.value == 0.5
    assert measured.n == 100
    assert (measured.by_kind["a"].value, measured.by_kind["b"].value) == (1.0, 0.0)
    assert measured.low < 0.5 < measured.high


def test_models_are_compared_on_the_questions_that_all_of_them_were_asked() -> None:
    problems = [problem(id=str(number)) for number in range(4)]
    refused = Refused(reason="too long")
    red, blue = replies("red", "blue")
    teacher = mark(problems, [red, refused, red, red], [True, False, True, True])
    student = mark(problems, [blue, red, refused, red], [False, True, False, True])
    compared = answered_by_all({"teacher": teacher, "student": student})
    assert [[one.id for one in compared[name]] for name in ("teacher", "student")] == [["0", "3"], ["0", "3"]]
    assert {name: accuracy(rows).value for name, rows in compared.items()} == {"teacher": 1.0, "student": 0.5}
    nothing = accuracy([])
    assert (math.isnan(nothing.value), math.isnan(nothing.high), nothing.n) == (True, True, 0)


def test_more_questions_narrow_the_interval() -> None:
    def width(n: int) -> float:
        problems = [problem(id=str(i)) for i in range(n)]
        answers = ["red" if i % 2 else "no" for i in range(n)]
        measured = accuracy(marked(problems, answers))
        return measured.high - measured.low

    assert width(400) == pytest.approx(2 * 1.96 * (0.25 / 404) ** 0.5, rel=1e-3)
    assert width(400) < width(100)
