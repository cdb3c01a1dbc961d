from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from masters_ray.errors import DataError
from masters_ray.method import prompts
from masters_ray.pipeline.curriculum import Difficulties, Ordered
from tests.builders import problem
from tests.unit.test_rollouts import Problems

QUESTIONS = Problems(problem(id=str(number)) for number in range(6))
SAID = {"0": 9, "1": 2, "2": None, "3": 2, "4": 10, "5": 1}


class Rater:
    """A teacher that says what it is told, and dies after so many questions."""

    most_calls_at_once = 1

    def __init__(self, said: dict[str, Any], lives: int = 100) -> None:
        self.asked: list[str] = []
        self._said, self._lives = said, lives

    def call_again(self, method: str, problems: list[Any]) -> list[Any]:
        if len(self.asked) >= self._lives:
            raise RuntimeError("killed")
        self.asked += [one.id for one in problems]
        return [self._said[one.id] for one in problems]


def difficulties(folder: Path, kind: Any = "rating", teacher: str = "t" * 64) -> Difficulties:
    return Difficulties(folder, kind, teacher)


def test_the_easiest_come_first_and_equal_ones_stay_in_their_order(tmp_path: Path) -> None:
    found = difficulties(tmp_path)
    found.ask(Rater(SAID), QUESTIONS, 4)  # type: ignore[arg-type]
    order = found.order(QUESTIONS, 0.25)  # type: ignore[arg-type]
    assert order == [5, 1, 3, 2, 0, 4], "the unrated one stands in the middle"
    ordered = Ordered(QUESTIONS, order)  # type: ignore[arg-type]
    assert [one.id for one in ordered[1:4]] == ["1", "3", "2"]
    assert ordered[0].id == "5"
    assert ordered.digest(0) == QUESTIONS[5].digest


def test_a_killed_call_goes_on_and_another_teacher_starts_anew(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="killed"):
        difficulties(tmp_path).ask(Rater(SAID, lives=2), QUESTIONS, 2)  # type: ignore[arg-type]
    again, other = Rater(SAID), Rater(SAID)
    difficulties(tmp_path).ask(again, QUESTIONS, 2)  # type: ignore[arg-type]
    assert again.asked == ["2", "3", "4", "5"]
    assert difficulties(tmp_path).missing(QUESTIONS) == []  # type: ignore[arg-type]
    difficulties(tmp_path, teacher="u" * 64).ask(other, QUESTIONS, 2)  # type: ignore[arg-type]
    assert len(other.asked) == 6


def test_too_many_without_a_difficulty_stop_the_run(tmp_path: Path) -> None:
    found = difficulties(tmp_path)
    found.ask(Rater(SAID | {"0": None}), QUESTIONS, 3)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="2 of 6 questions have no difficulty; data.max_unrated_share allows 0.25"):
        found.order(QUESTIONS, 0.25)  # type: ignore[arg-type]


def test_likelihoods_are_ranked_by_tenths(tmp_path: Path) -> None:
    found = difficulties(tmp_path, "likelihood")
    said = {"0": -3.0, "1": -0.1, "2": -0.1, "3": -9.0, "4": -0.2, "5": None}
    found.ask(Rater(said), QUESTIONS, 6)  # type: ignore[arg-type]
    assert found.order(QUESTIONS, 0.25) == [1, 2, 4, 5, 0, 3]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("<difficulty>7</difficulty>", 7),
        ("Hm. <difficulty> 10 </difficulty>", 10),
        ("3", 3),
        ("0", None),
        ("11", None),
        ("<difficulty>11</difficulty>", None),
        ("quite hard", None),
    ],
)
def test_parse_difficulty(text: str, number: int | None) -> None:
    assert prompts.parse_difficulty(text) == number


def test_the_question_of_difficulty_follows_question_picture_and_label() -> None:
    [turn] = prompts.difficulty_messages(problem(label="red"))
    kinds = [part["type"] for part in turn["content"]]
    assert kinds == ["image", "text", "text"]
    assert "right answer: red" in turn["content"][-1]["text"]
