"""Reads the rows of a jsonl or parquet file one at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from masters_ray.config import DataSource
from masters_ray.data import layouts
from masters_ray.data.texts import BadRowError, cut, shown
from masters_ray.errors import DataError

Row: TypeAlias = dict[str, Any] | BadRowError
"""Column name → value of a row, or why the row cannot be read."""
_ROWS = 64
"""Rows of a parquet file in memory at a time; each may hold pictures."""
_BUFFER = 1 << 20
"""Bytes read at a time from a column of a parquet file."""


def origin(source: DataSource) -> Path:
    """Returns the source's file. Raises DataError when it is missing or begins like another format."""
    if found := in_place_of(source):
        raise DataError(f"{cut(source.path or '', 500)}: expected a {source.format} file, found {found}")
    return Path(source.path or "")


def in_place_of(source: DataSource) -> str | None:
    """Returns "what is at the source's path. Remedy." when that is not a file of its format, otherwise None. Raises
    DataError when the file cannot be opened."""
    try:
        return layouts.in_place_of(source.path or "", source.format)
    except (OSError, ValueError) as error:
        raise _unreadable(source, error) from error


def rows(source: DataSource) -> Iterator[tuple[str, Row]]:
    """Yields ("file:row number from 1", row) of every row. Raises DataError when the file cannot be read."""
    file = origin(source)
    try:
        for number, row in _jsonl(file) if source.format == "jsonl" else _parquet(file):
            yield f"{file}:{number}", row
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(source, error) from error


def _unreadable(source: DataSource, error: Exception) -> DataError:
    reason = cut(" ".join(str(error).split()), 300)
    return DataError(f"{source.path}: cannot be read: is it damaged, or cut short? ({reason}). Copy or write it again.")


def _jsonl(file: Path) -> Iterator[tuple[int, Row]]:
    """Yields (row number from 1, row) of every row."""
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield number, _object(line)


def _parquet(file: Path) -> Iterator[tuple[int, Row]]:
    """Yields (row number from 1, row) of every row."""
    number = 0
    with pq.ParquetFile(file, buffer_size=_BUFFER) as content:
        names = content.schema_arrow.names
        if twice := {name for name in names if names.count(name) > 1}:
            raise DataError(f"{file}: {', '.join(twice)} names several columns. Rename all but one.")
        for batch in content.iter_batches(batch_size=_ROWS):
            yield from enumerate(_plain(batch), number + 1)
            number += len(batch)


def _object(line: bytes) -> Row:
    """Returns the JSON object in a line, or why it cannot be read."""
    try:
        # Decimals keep trailing zeros, as in 12.40.
        found = json.loads(line.decode("utf-8-sig"), object_pairs_hook=_each_key_once, parse_float=Decimal)
    except BadRowError as error:
        return error
    except UnicodeDecodeError as error:
        reason = f"{error.reason} at byte {error.start + 1}"
        return BadRowError(f"not UTF-8: {reason}. Of Latin-1 text, iconv -f latin1 -t utf-8 makes it")
    except (ValueError, ArithmeticError, RecursionError) as error:  # also too many digits or too deep nesting
        return BadRowError(f"not JSON that can be read: {cut(str(error))}")
    if not isinstance(found, dict):
        return BadRowError(f"expected an object with question, answer and image, found {type(found).__name__}")
    return found


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise BadRowError(f"one of the keys {shown([key for key, _ in pairs])} stands there twice: keep one")
    return found


def _plain(batch: pa.RecordBatch) -> list[Row]:
    try:
        found: list[Row] = batch.to_pylist()
    except (ValueError, OverflowError) as error:  # text that is not UTF-8, a date after the year 9999
        if len(batch) == 1:
            return [BadRowError(f"a value cannot be read: {cut(str(error))}")]
        return [row for index in range(len(batch)) for row in _plain(batch.slice(index, 1))]
    for field in batch.schema:
        element = getattr(field.type, "value_type", field.type)  # of lists
        if pa.types.is_float32(element) or pa.types.is_float16(element):
            for row in found:
                row[field.name] = _shortest(row[field.name], element.to_pandas_dtype())  # type: ignore[index]
    return found


def _shortest(value: Any, narrow: Any) -> Any:
    """Returns the shortest decimal that the narrow float type rounds to the value: 0.1, not 0.10000000149011612."""
    if isinstance(value, list):
        return [_shortest(one, narrow) for one in value]
    return None if value is None else float(np.format_float_scientific(narrow(value)))
