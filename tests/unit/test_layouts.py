import gzip
import json
import os
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from masters_ray.config import DataSource
from masters_ray.errors import DataError
from tests.builders import png
from tests.sources import good, jsonl, load, parquet

Read = Callable[..., list[tuple[str, tuple[str, ...]]]]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """(label, choices) of rows, each given as (answer, choices)."""

    def labels(*rows: tuple[Any, Any]) -> list[tuple[str, tuple[str, ...]]]:
        source = jsonl(tmp_path, [good(n, answer=answer, choices=choices) for n, (answer, choices) in enumerate(rows)])
        return [(one.label, one.choices) for one in sorted(load(source, 0.0), key=lambda one: int(one.id[1:]))]

    return labels


TWO = ("red", "blue")


@pytest.mark.parametrize(
    "label", ["blue", "Blue", "b", "(B)", "B.", "B:", "[B]", "B. blue", "(b) Blue", ["B"], " blue\n"]
)
def test_a_label_as_text_or_letter_becomes_the_text(read: Read, label: Any) -> None:
    assert read((label, list(TWO))) == [("blue", TWO)]


FORMS: list[Any] = [
    *(["A. red", "B. blue"], ["(A) red", "(B) blue"], ["a) red", "b)blue"], ["A: red", "B: blue"], "['red', 'blue']"),
    *({"A": "red", "B": "blue", "C": None}, {"label": ["A", "B"], "text": TWO}),
    [{"label": "A", "text": "red"}, {"label": "B", "text": "blue"}],
]


@pytest.mark.parametrize("choices", FORMS)
def test_choices_in_the_forms_of_data_sets_become_a_list_of_texts(read: Read, choices: Any) -> None:
    assert read(("B", choices), ("blue", choices)) == [("blue", TWO)] * 2


@pytest.mark.parametrize(
    ("label", "choices", "expected"),
    [
        (3, [4, 3], "3"),
        ("A", ["B", "A"], "A"),
        ("2)", ["1) red", "2. blue"], "blue"),
        ("2: 1", ["1: 2", "2: 1"], "2: 1"),  # ratios, not numbered choices
        ("0.5", ["0.25", 0.50], "0.5"),
        ("1.5 m", ["1.5 m", "2.5 m"], "1.5 m"),
        ("ff", ["Ff", "ff", "FF"], "ff"),
        ("A.M.", ["A.M.", "B.C."], "A.M."),
        ("B. blue", ["A. red", "B. blue"], "blue"),
        ("B", ["B. red", "C. blue"], "B. red"),
        ("A", {"B": "blue", "A": "red"}, "red"),
        ("B", ["red\nB. green", "blue\n</question>\r\n  x\u2028y"], "blue </question> x y"),  # each choice is a line
        ("Z", list(string.ascii_lowercase), "z"),
    ],
)
def test_what_may_be_read_in_two_ways_is_a_choice_s_text(read: Read, label: Any, choices: Any, expected: str) -> None:
    [(found, _)] = read((label, choices))
    assert found == expected


@pytest.mark.parametrize(
    ("answer_is", "expected"),
    [("text", ["2", None, None]), ("letter", [None, "blue", None]), ("index", ["3", None, "green"])],
)
def test_answer_is_says_how_labels_name_their_choice(tmp_path: Path, answer_is: Any, expected: list[str]) -> None:
    asked = [("2", ["1", "2", "3"]), ("B", ["red", "blue"]), ("2", ["red", "blue", "green"])]
    rows = [good(n, answer=answer, choices=choices) for n, (answer, choices) in enumerate(asked)]
    source = jsonl(tmp_path, rows)
    source.answer_is = answer_is
    assert {one.id: one.label for one in load(source)} == {f"q{n}": label for n, label in enumerate(expected) if label}


def test_a_number_is_never_taken_for_an_index_unasked(read: Read) -> None:
    with pytest.raises(DataError, match=r"'1' is none of the choices .*set answer_is=index if labels count from 0"):
        read((1, list(TWO)))


@pytest.mark.parametrize(
    ("label", "choices", "reason"),
    [
        ("green", TWO, r"'green' is none of the choices \['red', 'blue'\]; expected the text of one or its letter"),
        *((label, TWO, f"'{label}' is none") for label in ("E", 2, -1, "A, B", "B. red")),
        *(("A", list(map(str, range(n))), f"expected 2 to 26, which have letters, found {n}") for n in (1, 30)),
        ("A", ["red", "", "blue"], r"one is empty or stands there twice: \['red', '', 'blue'\]"),
        ("A", ["red", None], "choices: entry 2: expected a single text, number or date, found None"),
        *(("A", choices, r"twice: \['red', 'red'\]") for choices in (["red", " red "], ["A. red", "B. red"])),
        ("A", ["A. red", "A. blue"], r"twice: \['A', 'A'\]"),
        ("A", ["B. red", "C. blue"], "'A' is none of the choices"),
        *(("A", no_list, "choices: expected a list of texts or a mapping") for no_list in ("yes,no", "['red'", 7)),
        ("A", [["red"], ["blue", "x", "y"]], "choices: entry 2: expected a single text"),
    ],
)
def test_a_label_that_is_none_of_the_choices_or_choices_that_are_none_drop_the_row(
    read: Read, label: Any, choices: Any, reason: str
) -> None:
    with pytest.raises(DataError, match=reason):
        read((label, choices))


def test_without_choices_a_letter_is_a_free_answer(read: Read) -> None:
    nothing: list[Any] = [None, [], {}, ""]
    assert [read(("B", choices)) for choices in nothing] == [[("B", ())]] * 4


@pytest.mark.parametrize("kind", [pa.map_(pa.string(), pa.string()), pa.struct({"A": pa.string(), "B": pa.string()})])
def test_a_column_of_mappings_holds_choices(tmp_path: Path, kind: pa.DataType) -> None:
    row = {"answer": "B", "choices": {"A": "red", "B": "blue"}}
    [problem] = load(parquet(tmp_path / "rows.parquet", [row], choices=kind))
    assert (problem.label, problem.choices) == ("blue", TWO)


ROW = json.dumps(good(1)) + "\n"
BOM = b"\xef\xbb\xbf"


def refused(path: object, **more: Any) -> str:
    with pytest.raises(DataError) as error:
        load(DataSource(path=str(path), **more))
    return str(error.value)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (gzip.compress(ROW.encode(), mtime=0), "a compressed file. Name it so"),
        (b"PK\x03\x04rest", "a zip archive. Unpack it"),
        (b"0.png" + bytes(252) + b"ustar", "a tar archive"),
        (b"PAR1", "parquet. Name it .parquet"),
        *((ROW.encode(kind), "UTF-16 text. Write it in UTF-8: iconv") for kind in ("utf-16", "utf-16-le")),
        *((blank, f"no row ({len(blank)} bytes)") for blank in (b"", b" \n\n", BOM, BOM + b"\n \n")),
        (BOM + b"id,question,answer\n1,q?,a\n", "lines such as 'id,question,answer'. Convert it"),
        (png(), "lines such as "),
    ],
)
def test_a_file_that_is_not_json_is_named_with_its_remedy(tmp_path: Path, content: bytes, told: str) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(content)
    message = refused(file)
    assert message.startswith(f"{file}: ")
    assert told in message


def test_a_damaged_file_is_named_with_its_remedy(tmp_path: Path) -> None:
    file = tmp_path / "rows.parquet"
    whole = Path(parquet(file, [{"answer": "a" * 99}] * 9).path or "").read_bytes()
    for torn in (whole[:-20], whole[:40] + b"\xff" * 40 + whole[80:], b"no"):
        file.write_bytes(torn)
        message = refused(file)
        assert "rows.parquet: cannot be read (" in message and "Is it damaged, or cut short?" in message
        assert "\n" not in message
    for name, content in {"a.jsonl.gz": gzip.compress(ROW.encode())[:-20], "a.json": b'[{"id": 1}, {"id": '}.items():
        (tmp_path / name).write_bytes(content)
        assert f"{name}: " in refused(tmp_path / name)


def test_what_is_no_file_is_named_with_its_remedy(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jsonl")
    assert "expected a file, found a folder or no ordinary file" in refused(tmp_path / "pipe.jsonl")
    (tmp_path / "empty").mkdir()
    assert "expected files of one of the kinds .jsonl, .ndjson, .json, .parquet" in refused(tmp_path / "empty")
    for name in ("none.jsonl", "org/name"):
        assert f"{name}: does not exist. Mend the path; a data set of the Hub needs split" in refused(name)
    assert "*.jsonl: no file has such a name" in refused("*.jsonl")
    assert "expected a folder, or the id of a data set on the Hub such as org/name" in refused("name", split="train")
    assert "File name too long" in refused("x" * 300)
