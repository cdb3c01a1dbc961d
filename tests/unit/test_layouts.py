"""Choices and labels in the forms of data sets; what people bring in place of jsonl and parquet is named."""

import gzip
import io
import json
import os
import sqlite3
import string
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from masters_ray import data
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
    with pytest.raises(DataError, match=r"rows.jsonl:4: answer: '3' is none of the choices .* from 0"):
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
        ("green", TWO, r"'green' is none of the choices \['red', 'blue'\]; expected .* \(A to B\) or"),
        *((label, TWO, f"'{label}' is none") for label in ("E", 2, -1, "A, B", "B. red")),
        (True, TWO, "answer: True may stand for"),
        (["A", "B"], TWO, "expected a single text, found 2"),
        *(("A", list(map(str, range(n))), f"expected 2 to 26, which have letters, found {n}") for n in (1, 30)),
        ("A", ["red", "", "blue"], r"one is empty or stands there twice: \['red', '', 'blue'\]"),
        ("A", ["red", None], "choices: entry 2: expected a text or a number, found None"),
        *(("A", choices, r"twice: \['red', 'red'\]") for choices in (["red", " red "], ["A. red", "B. red"])),
        ("A", ["A. red", "A. blue"], r"twice: \['A', 'A'\]"),
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


ROW = json.dumps(good(1)) + "\n"


def refused(path: object, spool: Path, format: Any = "jsonl") -> str:
    with pytest.raises(DataError) as error:
        data.load(DataSource(format=format, path=str(path)), 0, 1.0, spool=spool / "s.sqlite")
    return str(error.value)


def _tar() -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("0.png"))
    return content.getvalue()


def _arrow(write: Any) -> bytes:
    content = io.BytesIO()
    write(content, pa.schema([("question", pa.string())])).close()
    return content.getvalue()


def _sqlite() -> bytes:
    with sqlite3.connect(":memory:") as connection:
        connection.execute("create table a (b)")
        return connection.serialize()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (gzip.compress(ROW.encode(), mtime=0), "gzip. Unpack it"),
        (_tar(), "a tar archive"),
        (_arrow(pa.ipc.new_file), "Arrow. Write it as parquet"),
        (_arrow(pa.ipc.new_stream), "save_to_disk writes it. Write it with Dataset.to_parquet"),
        (_sqlite(), "an SQLite database"),
        (b"PAR1", "parquet. Set data.*.format=parquet"),
        (b"PK\x03\x04rest", "a zip archive"),
        (b"<!DOCTYPE html><html>", "HTML or XML"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
        (ROW.encode("utf-16"), "UTF-16 text. Write it in UTF-8: iconv"),
        (ROW.encode("utf-16-le"), "UTF-16 text"),
        (b"", "no row (0 bytes)"),
        (b" \n\n", "no row (3 bytes)"),
        (json.dumps([good(1)]).encode(), "a JSON array. Write an object a line: jq -c"),
        (json.dumps([{"conversations": []}], indent=1).encode(), "a JSON array; its rows have LLaVA's layout"),
        (b"[\n " + ROW.encode() + b"]", "a JSON array. Write"),
        (json.dumps(good(1), indent=2).encode() * 2, "JSON over several lines. Write an object a line: jq -c"),
        (
            b"\xef\xbb\xbfid,question,answer,image\n1,q?,a,a.png\n",
            "lines such as 'id,question,answer,image'. masters_ray reads one",
        ),
        (png(), "PNG'. masters_ray reads one question a row"),
    ],
)
def test_a_file_that_is_not_jsonl_is_named_with_its_remedy(tmp_path: Path, content: bytes, told: str) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(content)
    message = refused(file, tmp_path)
    assert message.startswith(f"{file}: expected a jsonl file, found ")
    assert told in message


def test_a_file_that_is_not_parquet_or_damaged_is_named_with_its_remedy(tmp_path: Path) -> None:
    assert "jsonl. Set data.*.format=jsonl" in refused(jsonl(tmp_path, [good(1)]).path, tmp_path, "parquet")
    file = tmp_path / "rows.parquet"
    whole = Path(parquet(file, [{"answer": "a" * 99}] * 9).path or "").read_bytes()
    for torn in (whole[:-20], whole[:40] + b"\xff" * 40 + whole[80:], b"no"):
        file.write_bytes(torn)
        message = refused(file, tmp_path, "parquet")
        assert "rows.parquet: cannot be read: is it damaged, or cut short?" in message
        assert "\n" not in message


def test_what_is_no_file_is_named_with_its_remedy(tmp_path: Path) -> None:
    for name in ("shards/0.parquet", "saved/state.json"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    os.mkfifo(tmp_path / "pipe")
    for path, told in {
        "shards": "a folder (1 .parquet)",
        "saved": "a folder (1 .json). Join the files of a split into one; of save_to_disk, with Dataset.to_parquet",
        "pipe": "a device or a pipe",
        "*.jsonl": "a pattern of names",
        "none.jsonl": "none.jsonl: expected a jsonl file, found none. Set data.*.path to an existing file",
    }.items():
        assert told in refused(tmp_path / path, tmp_path)
    assert "an address" in refused("s3://bucket/rows.jsonl", tmp_path)
    assert "to_parquet" in refused("HuggingFaceM4/ChartQA", tmp_path)


@pytest.mark.parametrize("start", ["\ufeff", "\r\n", " \n"])
def test_a_byte_order_mark_and_lines_of_windows_are_read(tmp_path: Path, start: str) -> None:
    source = jsonl(tmp_path, [])
    Path(source.path or "").write_bytes((start + ROW.replace("\n", "\r\n") * 2).encode())
    second = "q1#3" if "\n" in start else "q1#2"
    assert sorted(one.id for one in load(source).problems) == ["q1", second]
