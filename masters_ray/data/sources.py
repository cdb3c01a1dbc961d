"""Rows of a source, one at a time: jsonl or parquet, and what makes a row a problem."""

from __future__ import annotations

import itertools
import json
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from masters_ray.config import DataSource
from masters_ray.data import layouts
from masters_ray.data.labels import READINGS, Reading, choices_of, readings, right_choice
from masters_ray.data.pictures import named
from masters_ray.data.scalars import BadRowError, as_text, cut, shown
from masters_ray.errors import DataError
from masters_ray.records import Picture, Problem

_ROWS = 64
"""Rows of a parquet file that are in memory at a time: each may hold pictures."""
_BUFFER = 1 << 20
"""Bytes that are read of a parquet file's column at a time."""
_FIRST = 500
"""Rows that show how the labels of a source name their choices."""
_COLUMNS_COUNTED = 100
_LONGEST_NAME = 500
"""Characters of an id or a kind."""


def origin(source: DataSource) -> Path:
    """The file that the rows stand in. Raises DataError when there is none, or when it begins like another format."""
    if found := in_place_of(source):
        raise DataError(f"{cut(source.path or '', _LONGEST_NAME)}: expected a {source.format} file, found {found}")
    return Path(source.path or "")


def in_place_of(source: DataSource) -> str | None:
    """What is at a source's path in place of a file of its format, a full stop, and what to do; None when nothing is.
    Raises DataError when the file cannot be opened."""
    path = source.path or ""
    file = Path(path)
    try:
        return layouts.other(file, source.format) if file.is_file() else layouts.elsewhere(path, source.format)
    except (OSError, ValueError) as error:
        raise _unreadable(file, error) from error


def rows(source: DataSource, columns: tuple[str, ...] | None = None) -> Iterator[tuple[str, Any]]:
    """(where, row) of every row; a row is a mapping, the bytes of a line, or a BadRowError.

    columns: those of a parquet file that are wanted. Raises DataError when the file cannot be read.
    """
    file = origin(source)
    try:
        yield from _lines(file) if source.format == "jsonl" else _parquet_rows(file, columns)
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(file, error) from error


def _unreadable(file: Path, error: Exception) -> DataError:
    reason = cut(" ".join(str(error).split()), 300)
    return DataError(f"{file}: cannot be read: is it damaged, or cut short? ({reason}). Copy or write it again.")


def _lines(file: Path) -> Iterator[tuple[str, bytes]]:
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield f"{file}:{number}", line


def _parquet_rows(file: Path, columns: tuple[str, ...] | None) -> Iterator[tuple[str, dict[str, Any] | BadRowError]]:
    number = 0
    with pq.ParquetFile(file, buffer_size=_BUFFER) as content:
        names = content.schema_arrow.names
        if twice := {name for name in names if names.count(name) > 1}:
            raise DataError(f"{file}: {', '.join(twice)} names several columns. Rename all but one.")
        wanted = None if columns is None else [name for name in columns if name in names]
        for batch in content.iter_batches(batch_size=_ROWS, columns=wanted):
            for row in _plain(batch):
                number += 1
                yield f"{file}:{number}", row


def _plain(batch: pa.RecordBatch) -> Sequence[dict[str, Any] | BadRowError]:
    try:
        found: list[dict[str, Any]] = batch.to_pylist()
    except (ValueError, OverflowError) as error:  # text that is not UTF-8, a date after the year 9999
        if len(batch) == 1:
            return [BadRowError(f"a value cannot be read: {cut(str(error))}")]
        return [row for index in range(len(batch)) for row in _plain(batch.slice(index, 1))]
    for field in batch.schema:
        element = getattr(field.type, "value_type", field.type)  # of lists
        if pa.types.is_float32(element) or pa.types.is_float16(element):
            for row in found:
                row[field.name] = _shortest(row[field.name], element.to_pandas_dtype())
    return found


def _shortest(value: Any, narrow: Any) -> Any:
    """0.1 in place of 0.10000000149011612, which float32 makes of it."""
    if isinstance(value, list):
        return [_shortest(one, narrow) for one in value]
    return None if value is None else float(np.format_float_scientific(narrow(value)))


class Reader:
    """Makes problems of a source's rows, and counts the columns that it has no use for; for several threads at once."""

    def __init__(self, source: DataSource) -> None:
        """Looks at the first rows, to see how labels name their choices. Raises DataError."""
        self._folder = Path(source.path or ".").parent
        self._usual = _usual_reading(source)
        self._lock = threading.Lock()
        self.unused: Counter[str] = Counter()
        """Column → rows that have a value in it."""

    def problem(self, row: Any, where: str) -> Problem:
        """One of ``rows`` as a problem; paths of pictures start beside the file. Raises BadRowError; looks at no
        picture."""
        row = _mapping(row)
        unused = [key for key, value in row.items() if value is not None and key not in layouts.USED]
        with self._lock:
            self.unused.update(key for key in unused if len(self.unused) < _COLUMNS_COUNTED or key in self.unused)
        if wrong := layouts.wrong_columns(row):
            raise BadRowError(wrong)
        question, label = as_text(row["question"], "question"), as_text(row["answer"], "answer")
        if not question:
            raise BadRowError("empty question")
        if not label:
            raise BadRowError("empty answer")
        images = row["image"] if isinstance(row["image"], list) else [row["image"]]
        if not images or images == [""]:
            raise BadRowError(f"image: expected a picture, found {images or 'an empty list'}; every question needs one")
        choices = choices_of(row.get("choices"))
        found = Problem(
            id=_name(row.get("id"), "id") or where,
            question=question,
            label=right_choice(label, choices, self._usual),
            pictures=tuple(_picture(image, self._folder) for image in images),
            choices=choices.texts,
            kind=_name(row.get("kind"), "kind") or "all",
        )
        _check_texts(found)
        return found


def _mapping(row: Any) -> dict[str, Any]:
    if isinstance(row, BadRowError):
        raise row
    if isinstance(row, bytes):
        row = _json(row)
    if not isinstance(row, dict):
        raise BadRowError(f"expected an object with question, answer and image, found {type(row).__name__}")
    return row


def _json(line: bytes) -> Any:
    try:
        text = line.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        reason = f"{error.reason} at byte {error.start + 1}"
        raise BadRowError(f"not UTF-8: {reason}. Of Latin-1 text, iconv -f latin1 -t utf-8 makes it") from error
    try:
        # As Decimals numbers keep the zeros that people wrote, as those of 12.40.
        return json.loads(text, object_pairs_hook=_each_key_once, parse_float=Decimal)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":
            after = "a comma" if text[error.pos :].strip() == "," else "something"
            raise BadRowError(f"not JSON: {after} stands after the value, at character {error.pos + 1}") from error
        raise BadRowError(f"not JSON: {error}") from error
    except RecursionError:
        raise BadRowError("not JSON that can be read: too many brackets inside each other") from None
    except (ValueError, ArithmeticError) as error:
        raise BadRowError("not JSON that can be read: a number has too many digits") from error


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = Counter(key for key, _ in pairs)
        raise BadRowError(f"{shown(max(keys, key=keys.__getitem__))} stands there twice: keep one")
    return found


def _usual_reading(source: DataSource) -> Reading:
    """How most labels of the first rows name their choices. Where a label may be read in several ways, as an index
    among choices that are numbers, the others of its source decide; without them it is the text of a choice."""
    counts: Counter[Reading] = Counter()
    for _, row in itertools.islice(rows(source, ("answer", "choices")), _FIRST):
        try:
            found = _mapping(row)
            label, choices = as_text(found.get("answer"), "answer"), choices_of(found.get("choices"))
        except BadRowError:
            continue  # told when the row is read
        counts.update(list(readings(label, choices)))
    return max(READINGS, key=lambda one: counts[one])


def _name(value: Any, key: str) -> str | None:
    """An id or a kind; None: the row has none."""
    if value is None or value != value:  # NaN, the gap of a column of numbers
        return None
    text = str(value) if isinstance(value, bool) else as_text(value, key)
    if len(text) > _LONGEST_NAME:
        raise BadRowError(f"{key}: expected at most {_LONGEST_NAME} characters, found {len(text)}")
    return text or None


def _check_texts(found: Problem) -> None:
    texts = {"id": found.id, "question": found.question, "answer": found.label, "kind": found.kind}
    texts |= {"choices": "".join(found.choices), "image": "".join(picture.path or "" for picture in found.pictures)}
    for key, text in texts.items():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise BadRowError(f"{key}: expected Unicode, found half of a surrogate pair") from error
        if "\0" in text:
            raise BadRowError(f"{key}: holds the character NUL: take it out")


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
    raise BadRowError(f"image: expected a path or bytes, found {shown(image)}")
