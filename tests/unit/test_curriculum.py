from pathlib import Path
from typing import Any

import pytest

from masters_ray.config import Config
from masters_ray.errors import DataError
from masters_ray.method import prompts
from masters_ray.pipeline.curriculum import Questions
from tests.builders import problem
from tests.conftest import PAIR
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


def questions(folder: Path, difficulty: Any = "rating", teacher: str = "teacher") -> Any:
    config = Config()
    config.data.order, config.data.difficulty, config.data.max_unrated_share = "easy_to_hard", difficulty, 0.25
    config.teacher.checkpoint, config.rollout.batch_rows = str(PAIR / teacher), 2
    return Questions(config, QUESTIONS, folder)  # type: ignore[arg-type]


LIKELIHOODS = {"0": -3.0, "1": -0.1, "2": -0.1, "3": -9.0, "4": -0.2, "5": None}


@pytest.mark.parametrize(
    ("difficulty", "said", "order"),
    [
        ("rating", SAID, "5 1 3 2 0 4"),  # the unrated one stands in the middle
        ("likelihood", LIKELIHOODS, "1 2 4 5 0 3"),  # ranked by tenths
    ],
)
def test_the_easiest_come_first_and_equal_ones_stay_in_their_order(
    difficulty: str, said: dict[str, Any], order: str, tmp_path: Path
) -> None:
    found = questions(tmp_path, difficulty)
    found.ask(Rater(said))
    assert [one.id for one in found[0:6]] == order.split()


def test_a_killed_call_goes_on_and_another_teacher_starts_anew(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="killed"):
        questions(tmp_path).ask(Rater(SAID, lives=2))
    again, other = Rater(SAID), Rater(SAID)
    assert not questions(tmp_path).known
    questions(tmp_path).ask(again)
    assert again.asked == ["2", "3", "4", "5"]
    assert questions(tmp_path).known
    questions(tmp_path, teacher="student").ask(other)
    assert len(other.asked) == 6


def test_too_many_without_a_difficulty_stop_the_run(tmp_path: Path) -> None:
    found = questions(tmp_path)
    found.ask(Rater(SAID | {"0": None}))
    with pytest.raises(DataError, match="2 of 6 questions have no difficulty; data.max_unrated_share allows 0.25"):
        found[0:1]


def test_parse_difficulty() -> None:
    texts = ("Hm. <difficulty> 10 </difficulty>", "3", "0", "<difficulty>11</difficulty>", "quite hard")
    assert list(map(prompts.parse_difficulty, texts)) == [10, 3, None, None, None]
