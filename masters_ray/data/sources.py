"""Rows of a source, one at a time: jsonl, parquet or easy-vqa, and what makes a row a problem."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from masters_ray import easy_vqa
from masters_ray.config import DataSource
from masters_ray.data.pictures import named
from masters_ray.errors import DataError
from masters_ray.records import Picture, Problem

_ROWS = 64
"""Rows of a parquet file that are in memory at a time: each may hold pictures."""
_BUFFER = 1 << 20
"""Bytes that are read of a parquet file's column at a time."""


class BadRowError(Exception):
    """Why one row cannot be used; becomes a Rejected, never reaches a caller."""


def origin(source: DataSource) -> Path:
    """The file that the rows stand in. Raises DataError when there is none."""
    if source.format == "easy_vqa":
        return easy_vqa.data_folder() / source.split / "questions.json"
    file = Path(source.path or "")
    if not file.is_file():
        raise DataError(f"{file}: expected a {source.format} file, found none. Set data.*.path to an existing file.")
    return file


def rows(source: DataSource) -> Iterator[tuple[str, Any]]:
    """(where, row) of every row; a row is a mapping, a Problem (easy-vqa) or the bytes of a line.

    Raises DataError when the file cannot be read.
    """
    if source.format == "easy_vqa":
        yield from ((f"easy-vqa {problem.id}", problem) for problem in easy_vqa.problems(source.split, source.kinds))
        return
    file = origin(source)
    try:
        yield from _lines(file) if source.format == "jsonl" else _parquet_rows(file)
    except pa.ArrowInvalid as error:
        raise DataError(f"{file}: expected a {source.format} file, found something else ({error}).") from error
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error}). Mend the file, or set data.*.path to another.") from error


def _lines(file: Path) -> Iterator[tuple[str, bytes]]:
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield f"{file}:{number}", line


def _parquet_rows(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    number = 0
    with pq.ParquetFile(file, buffer_size=_BUFFER) as content:
        for batch in content.iter_batches(batch_size=_ROWS):
            for row in batch.to_pylist():
                number += 1
                yield f"{file}:{number}", row


def problem(row: Any, where: str, folder: Path) -> Problem:
    """One of ``rows`` as a problem; paths of pictures start at ``folder``. Raises BadRowError; looks at no picture."""
    if isinstance(row, Problem):
        return row
    if isinstance(row, bytes):
        try:
            row = json.loads(row.decode("utf-8-sig"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise BadRowError(f"not JSON in UTF-8: {error}") from error
    if not isinstance(row, dict):
        raise BadRowError(f"expected an object with question, answer and image, found {type(row).__name__}")
    missing = [key for key in ("question", "answer", "image") if row.get(key) is None]
    if missing:
        raise BadRowError(f"no {', '.join(missing)}; the keys are {', '.join(map(str, row))}")
    for key in ("question", "answer"):
        if not isinstance(row[key], str | int | float):
            raise BadRowError(f"{key}: expected a text, found {type(row[key]).__name__}")
    question, label = str(row["question"]).strip(), str(row["answer"]).strip()
    if not question:
        raise BadRowError("empty question")
    if not label:
        raise BadRowError("empty answer")
    images = row["image"] if isinstance(row["image"], list) else [row["image"]]
    choices = row.get("choices") or []
    if not isinstance(choices, list):
        raise BadRowError(f"choices: expected a list, found {type(choices).__name__}")
    found = Problem(
        id=str(row["id"]) if row.get("id") is not None else where,
        question=question,
        label=label,
        pictures=tuple(_picture(image, folder) for image in images),
        choices=tuple(str(choice) for choice in choices),
        kind=str(row.get("kind") or "all"),
    )
    _check_texts(found)
    return found


def _check_texts(found: Problem) -> None:
    texts = {"id": found.id, "question": found.question, "answer": found.label, "kind": found.kind}
    texts |= {"choices": "".join(found.choices), "image": "".join(picture.path or "" for picture in found.pictures)}
    for key, text in texts.items():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise BadRowError(f"{key}: expected Unicode, found half of a surrogate pair") from error


def _picture(image: Any, folder: Path) -> Picture:
    if isinstance(image, dict):  # the struct of bytes and path that datasets libraries write
        image = image.get("bytes") or image.get("path")
    if isinstance(image, bytes):
        return Picture(data=image)
    if isinstance(image, str):
        try:
            return named(image, folder)
        except ValueError as error:
            raise BadRowError(f"image: {error}") from None
    raise BadRowError(f"image: expected a path or bytes, found {type(image).__name__}")
