"""What people bring in place of jsonl and parquet is named with its remedy."""

import gzip
import io
import json
import os
import sqlite3
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from masters_ray import data
from masters_ray.config import DataSource
from masters_ray.errors import DataError
from tests.builders import png
from tests.sources import good, jsonl, load, parquet

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
        "saved": "a folder of datasets.save_to_disk. Write it with Dataset.to_parquet",
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
