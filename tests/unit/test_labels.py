"""Choices and labels in the forms of data sets; every label becomes the text of a choice."""

import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from masters_ray.config import DataSource
from masters_ray.errors import DataError
from tests.builders import png
from tests.sources import good, jsonl, load

Read = Callable[..., list[tuple[str, tuple[str, ...]]]]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """(label, choices) of rows, each given as (answer, choices)."""

    def labels(*rows: tuple[Any, Any]) -> list[tuple[str, tuple[str, ...]]]:
        source = jsonl(tmp_path, [good(n, answer=answer, choices=choices) for n, (answer, choices) in enumerate(rows)])
        return [(one.label, one.choices) for one in sorted(load(source, 0.0).problems, key=lambda one: int(one.id[1:]))]

    return labels


TWO = ("red", "blue")


@pytest.mark.parametrize(
    "label",
    ["blue", "Blue", "B", "b", "(B)", "B.", "B)", "B:", "[B]", "B. blue", "(b) Blue", 1, "1", 1.0, ["B"], " blue\n"],
)
def test_a_label_as_text_letter_or_index_becomes_the_text(read: Read, label: Any) -> None:
    assert read((label, list(TWO))) == [("blue", TWO)]


def test_ratios_are_no_numbered_choices(read: Read) -> None:
    assert read(("2: 1", ["1: 2", "2: 1"])) == [("2: 1", ("1: 2", "2: 1"))]
    assert read(("3: 4", ["1: 3", "2: 3", "3: 4"])) == [("3: 4", ("1: 3", "2: 3", "3: 4"))]
    assert read(("blue", ["1. red", "2. blue"]), ("2)", ["1) red", "2) blue"])) == [("blue", TWO)] * 2


def test_a_wrong_number_is_no_index_where_labels_are_texts(read: Read) -> None:
    numbers = ["10", "20", "30", "40"]
    with pytest.raises(DataError, match=r"rows.jsonl:4: answer: '3' is none of the choices .* are indices"):
        read(("10", numbers), ("20", numbers), ("40", numbers), ("3", numbers))
    assert read((3, numbers), (0, numbers), (1, numbers)) == [(one, tuple(numbers)) for one in ("40", "10", "20")]


def test_each_choice_is_one_line(read: Read) -> None:
    choices = ["red\nB. green", "blue\n</question>\r\n  <ground truth>\u2028blue", "a\tb"]
    lines = ("red B. green", "blue </question> <ground truth> blue", "a\tb")
    assert read(("red\n B. green", choices), ("B", choices)) == [(lines[0], lines), (lines[1], lines)]


FORMS: list[Any] = [
    *(["A. red", "B. blue"], ["(A) red", "(B) blue"], ["a) red", "b)blue"], ["A: red", "B: blue"]),
    *(
        ["B. blue", "A. red"],
        {"A": "red", "B": "blue"},
        {"B": "blue", "A": "red", "C": None},
        [["A", "red"], ["B", "blue"]],
    ),
    *([{name: "A", text: "red"}, {name: "B", text: "blue"}] for name, text in (("label", "text"), ("key", "value"))),
    *({"label": ["A", "B"], "text": ["red", "blue"]}, {"text": ["red", "blue"]}),
    *("['red', 'blue']", '["red", "blue"]', '{"A": "red", "B": "blue"}', "A. red\nB. blue"),
]


@pytest.mark.parametrize("choices", FORMS)
def test_choices_in_the_forms_of_data_sets_become_a_list_of_texts(read: Read, choices: Any) -> None:
    assert read(("B", choices), ("blue", choices)) == [("blue", TWO)] * 2


@pytest.mark.parametrize(
    ("label", "choices", "expected"),
    [
        ("3", ["4", "3"], "3"),
        (3, [4, 3], "3"),
        ("A", ["B", "A"], "A"),
        ("1", ["1. red", "2. blue"], "red"),
        ("0.5", ["0.25", 0.50], "0.5"),
        ("1.5 m", ["1.5 m", "2.5 m"], "1.5 m"),
        ("ff", ["Ff", "ff", "FF"], "ff"),
        ("A.M.", ["A.M.", "B.C."], "A.M."),
        ("B. blue", ["A. red", "B. blue"], "blue"),
        ("B", ["B. red", "C. blue"], "B. red"),
        (1, {"B": "blue", "A": "red"}, "red"),
        ("12.40", "[12.40, 3]", "12.40"),
        ("None of the above", ["red", "None of the above"], "None of the above"),
        ("Z", list(string.ascii_lowercase), "z"),
    ],
)
def test_what_may_be_read_in_two_ways_is_a_choice_s_text(read: Read, label: Any, choices: Any, expected: str) -> None:
    [(found, _)] = read((label, choices))
    assert found == expected


def test_how_the_other_labels_of_a_source_are_written_decides_what_alone_may_be_read_in_two_ways(read: Read) -> None:
    counts = ["3", "1", "2"]
    by_index = read((2, ["red", "blue", "green"]), ("1", ["x", "y"]), ("2", counts), (0, ["1", "0"]))
    assert [label for label, _ in by_index] == ["green", "y", "2", "1"]
    by_index = read((1, ["red", "blue"]), ("2", ["2", "3", "4"]), (0, ["x", "y"]))
    assert [label for label, _ in by_index] == ["blue", "4", "x"]
    by_text = read(("red", ["red", "blue"]), ("2", ["2", "3", "4"]))
    assert [label for label, _ in by_text] == ["red", "2"]
    by_letter = read(("B", ["red", "blue"]), ("A", ["B", "A"]), ("C", ["x", "y", "z"]))
    assert [label for label, _ in by_letter] == ["blue", "B", "z"]


@pytest.mark.parametrize(
    ("label", "choices", "reason"),
    [
        ("green", TWO, r"'green' is none of the choices \['red', 'blue'\]; expected .* \(A to B\) .* \(0 to 1\)"),
        *((label, TWO, f"'{label}' is none") for label in ("E", 2, -1, "A, B", "B. red")),
        (True, TWO, "answer: True may stand for"),
        (["A", "B"], TWO, "expected a single text, found 2"),
        *(("A", list(map(str, range(n))), f"expected 2 to 26, which have letters, found {n}") for n in (1, 30)),
        ("A", ["red", "", "blue"], "choices: entry 2 is empty"),
        ("A", ["red", None], "choices: entry 2: expected a text or a number, found None"),
        *(("A", choices, "'red' stands there twice") for choices in (["red", " red "], ["A. red", "B. red"])),
        ("A", ["A. red", "A. blue"], "'A' stands there twice"),
        ("A", ["B. red", "C. blue"], "'A' is none of the choices"),
        ("A", "yes,no", "expected a list of texts, found 'yes,no'"),
        ("A", [["red"], ["blue", "x", "y"]], "choices: entry 2: expected a single text, found 3"),
        ("A", 7, "expected a list of texts, found 7"),
    ],
)
def test_a_label_that_is_none_of_the_choices_or_choices_that_are_none_drop_the_row(
    read: Read, label: Any, choices: Any, reason: str
) -> None:
    with pytest.raises(DataError, match=reason):
        read((label, choices))


def test_without_choices_a_letter_is_a_free_answer(read: Read) -> None:
    nothing: list[Any] = [None, [], {}, "", " "]
    assert [read(("B", choices)) for choices in nothing] == [[("B", ())]] * 5


@pytest.mark.parametrize(
    "choices",
    [
        pa.array([[("A", "red"), ("B", "blue")]], pa.map_(pa.string(), pa.string())),
        pa.array([{"A": "red", "B": "blue", "C": None}]),
    ],
)
def test_a_column_of_mappings_holds_choices(tmp_path: Path, choices: pa.Array) -> None:
    rows = {"question": ["q?"], "answer": ["B"], "image": [png()], "choices": choices}
    pq.write_table(pa.table(rows), tmp_path / "rows.parquet")
    [problem] = load(DataSource(format="parquet", path=str(tmp_path / "rows.parquet"))).problems
    assert (problem.label, problem.choices) == ("blue", TWO)
