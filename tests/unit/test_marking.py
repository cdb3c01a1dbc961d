import pytest

from masters_ray import marking
from masters_ray.records import Problem


def problem(label: str, *choices: str) -> Problem:
    return Problem(id="p", question="which?", label=label, pictures=(), choices=choices)


@pytest.mark.parametrize(
    ("answer", "label", "same"),
    [
        ("red", "red", True),
        (" Red.\n", "red", True),
        ("the red", "red", True),
        ("A circle!", "circle", True),
        ("top   left", "Top left", True),
        ('"top left"', "top left", True),
        ("a", "A", True),
        ("blue", "red", False),
        ("red red", "red", False),
        ("red circle", "red", False),
        ("topleft", "top left", False),
        ("left", "top left", False),
        ("", "red", False),
        (" . ", "red", False),
        ("", "", False),
        ("1.5", "15", False),
    ],
)
def test_matches(answer: str, label: str, same: bool) -> None:
    assert marking.matches(answer, label) is same


@pytest.mark.parametrize(
    ("answer", "label", "right"),
    [
        ("104", "100", True),
        ("106", "100", False),
        ("$1,020.", "1000", True),
        ("-5", "5", False),
        ("45 %", "44", True),
        ("0", "0", True),
        ("0.001", "0", False),
        (".52", "0.5", True),
        ("Paris", "paris", True),
        ("5 apples", "5", False),
        ("1.2.3", "1.2", False),
    ],
)
def test_a_number_may_be_off_by_five_percent(answer: str, label: str, right: bool) -> None:
    assert marking.relaxed(answer, problem(label)) is right


@pytest.mark.parametrize(
    ("answer", "label", "right"),
    [
        ("B", "blue", True),
        ("(b)", "blue", True),
        ("b. blue", "blue", True),
        ("Blue", "B", True),
        ("B. red", "blue", False),
        ("A", "blue", False),
        ("a blue", "blue", True),
        ("D", "blue", False),
        ("", "blue", False),
    ],
)
def test_a_choice_is_named_by_its_letter_or_its_text(answer: str, label: str, right: bool) -> None:
    assert marking.choice(answer, problem(label, "red", "blue", "green")) is right


def test_without_choices_the_text_must_match() -> None:
    assert marking.choice("red", problem("Red"))
    assert not marking.choice("A", problem("red"))
