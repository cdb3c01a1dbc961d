"""What people bring in place of jsonl and parquet is named with its remedy."""

from __future__ import annotations

import gzip
import io
import json
import os
import sqlite3
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
from tests.sources import good, jsonl

ROW = json.dumps(good(1)) + "\n"


def refused(path: object, spool: Path, format: Any = "jsonl") -> str:
    with pytest.raises(DataError) as error:
        data.load(DataSource(format=format, path=str(path)), 0, 1.0, spool=spool / "s.arrow")
    return str(error.value)


def _tar() -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("0.png"))
    return content.getvalue()


def _arrow(stream: bool) -> bytes:
    content = io.BytesIO()
    schema = pa.schema([("question", pa.string())])
    (pa.ipc.new_stream if stream else pa.ipc.new_file)(content, schema).close()
    return content.getvalue()


def _parquet(rows: list[dict[str, Any]]) -> bytes:
    content = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), content)
    return content.getvalue()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (gzip.compress(ROW.encode(), mtime=0), "gzip. Unpack it"),
        (_tar(), "a tar archive"),
        (_arrow(False), "Arrow. Write it as parquet"),
        (_arrow(True), "save_to_disk writes it. Write it with Dataset.to_parquet"),
        (_parquet([{"a": 1}]), "parquet. Set data.*.format=parquet"),
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
        (json.dumps(good(1), indent=2).encode() * 2, "JSON over several lines. Write an object a line: jq -c ."),
        (b"\xef\xbb\xbfid,question,answer,image\n1,q?,a,a.png\n", "csv with the columns id, question, answer, image"),
        (b"question;answer;image\n", "csv with the columns question, answer, image"),
        (png(), "no text. masters_ray reads one question a row"),
        (b"index\tquestion\tA\tB\tanswer\timage\n", "tsv with the columns index, question, A, B, answer, image"),
    ],
)
def test_a_file_that_is_not_jsonl_is_named_with_its_remedy(tmp_path: Path, content: bytes, told: str) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(content)
    message = refused(file, tmp_path)
    assert message.startswith(f"{file}: expected a jsonl file, found ")
    assert told in message


def test_a_data_base_and_jsonl_are_no_parquet_and_a_damaged_file_is_named(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "rows.db")
    connection.execute("create table a (b)")
    connection.close()
    assert "an SQLite database" in refused(tmp_path / "rows.db", tmp_path, "parquet")
    assert "jsonl. Set data.*.format=jsonl" in refused(jsonl(tmp_path, [good(1)]).path, tmp_path, "parquet")
    whole = _parquet([{"question": "q?", "answer": "a" * 99, "image": png()}] * 9)
    for torn in (whole[:-20], whole[:40] + b"\xff" * 40 + whole[80:]):
        (tmp_path / "torn.parquet").write_bytes(torn)
        message = refused(tmp_path / "torn.parquet", tmp_path, "parquet")
        assert "torn.parquet: cannot be read: is it damaged, or cut short?" in message
        assert "\n" not in message


def test_what_is_no_file_is_named_with_its_remedy(tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "0.parquet").touch()
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "state.json").touch()
    os.mkfifo(tmp_path / "pipe")
    for path, told in {
        "shards": "a folder (1 .parquet)",
        "saved": "a folder of datasets.save_to_disk. Write it with Dataset.to_parquet",
        "pipe": "a device or a pipe",
        "*.jsonl": "a pattern of names",
        "none.jsonl": "none. Set data.*.path to an existing file",
    }.items():
        assert told in refused(tmp_path / path, tmp_path)
    assert "an address" in refused("s3://bucket/rows.jsonl", tmp_path)
    assert "to_parquet" in refused("HuggingFaceM4/ChartQA", tmp_path)


PICTURE = {"image": "a.png"}
PAIR = {"question": "q?", "answer": "a"}


@pytest.mark.parametrize(
    ("row", "told"),
    [
        (PICTURE | {"conversations": [{"from": "human", "value": "q?"}]}, "holds LLaVA's layout (conversations)"),
        ({"messages": [{"role": "user", "content": "q?"}], "images": []}, "holds the layout of OpenAI and ms-swift"),
        ({"images": [], "texts": [{"user": "q?", "assistant": "a"}]}, "holds the layout of The Cauldron"),
        (PICTURE | {"qa": [PAIR]}, "holds several questions in one row (qa)"),
        (PICTURE | {"query": "q?", "label": ["a"]}, "query may be meant as question: rename it; label may be meant as"),
        (PICTURE | {"Question": "q?", "Answer": "a"}, "Question may be meant as question: rename it"),
        (PICTURE | {"question": "q?", "answers": ["a", "b"]}, "answers may be meant as answer: rename it"),
        (
            PICTURE | {"question": "q?", "multiple_choice_answer": "a", "answers": [{"answer": "a"}]},
            "multiple_choice_answer, answers may be meant as answer: rename one: a single text is read",
        ),
        (PAIR | {"images": ["a.png"]}, "no image; images may be meant as image: rename it"),
        (PAIR | {"image_1": "a.png", "image_2": "b.png"}, "image_1, image_2 may be meant as image: put them into one"),
        (PAIR | {"image_1": "a.png", "options": ["a", "b"]}, "options may be meant as choices: rename it; image_1 may"),
        (PAIR, "no image; the columns are question, answer; masters_ray reads one question a row"),
        (PAIR | {"image": None}, "no image (image is null)"),
        (PAIR | {"image": ""}, "image: expected a picture, found ['']"),
        (PAIR | {"image": [["a.png"]]}, "image: expected a path or bytes, found ['a.png']"),
    ],
)
def test_a_row_of_another_layout_is_named_with_its_remedy(tmp_path: Path, row: dict[str, Any], told: str) -> None:
    assert told in refused(jsonl(tmp_path, [row]).path, tmp_path)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("# a comment", "not JSON: Expecting value"),
        (ROW.strip() + ",", "not JSON: a comma stands after the value"),
        (ROW.strip() * 2, "not JSON: something stands after the value"),
        ('{"question": "q?', "not JSON: "),
        ("3", "expected an object with question, answer and image, found int"),
    ],
)
def test_a_line_that_is_no_row_costs_that_line(tmp_path: Path, line: str, told: str) -> None:
    loaded = data.load(jsonl(tmp_path, [good(1), line, good(2)]), 0, 0.5, spool=tmp_path / "s.arrow")
    assert (len(loaded.problems), len(loaded.rejected)) == (2, 1)
    assert told in loaded.rejected[0].reason


def test_latin_1_is_told_from_broken_utf_8_by_its_remedy(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(ROW.replace("what", "wh\xe4t").encode("latin-1"))
    assert "not UTF-8: " in (message := refused(file, tmp_path))
    assert "iconv -f latin1" in message


@pytest.mark.parametrize("start", ["\ufeff", "\r\n", " \n"])
def test_a_byte_order_mark_and_lines_of_windows_are_read(
    tmp_path: Path, start: str, loads: Callable[[Path], list[str]]
) -> None:
    file = Path(jsonl(tmp_path, [good(1)]).path or "")
    file.write_bytes((start + ROW.replace("\n", "\r\n") * 2).encode())
    assert loads(file) == ["q1", "q1#3" if "\n" in start else "q1#2"]


@pytest.fixture
def loads(tmp_path: Path) -> Callable[[Path], list[str]]:
    def ids(file: Path) -> list[str]:
        loaded = data.load(DataSource(path=str(file)), 0, 0.0, spool=tmp_path / "s.arrow")
        return sorted(one.id for one in loaded.problems)

    return ids
