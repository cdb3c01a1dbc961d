"""Reads the rows of a jsonl or parquet file one at a time."""

import itertools
import json
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq

from masters_ray.config import DataSource
from masters_ray.data.layouts import in_place_of, reading
from masters_ray.data.texts import BadRowError, cut, shown
from masters_ray.errors import DataError

Row: TypeAlias = dict[str, Any] | BadRowError
"""Column name → value of a row, or why the row cannot be read."""
_ROWS = 64
"""Rows of a parquet file in memory at a time; each may hold pictures."""
_BUFFER = 1 << 20
"""Bytes read at a time from a column of a parquet file."""
_WIDER = (
    (pa.float32(), pa.string(), pa.float64()),
    (pa.list_(pa.float32()), pa.list_(pa.string()), pa.list_(pa.float64())),
)
"""Types between which a column is cast in turn for the shortest decimals: 0.1, not 0.10000000149011612."""


def origin(source: DataSource) -> Path:
    """Returns the source's file. Raises DataError when it is missing or begins like another format."""
    if found := in_place_of(source):
        raise DataError(f"{cut(source.path or '', 500)}: expected a {source.format} file, found {found}")
    return Path(source.path or "")


def rows(source: DataSource) -> Iterator[tuple[str, Row]]:
    """Yields ("file:row number from 1", row) of every row. Raises DataError when the file cannot be read."""
    file = origin(source)
    with reading(source):
        for number, row in _jsonl(file) if source.format == "jsonl" else _parquet(file):
            yield f"{file}:{number}", row


def _jsonl(file: Path) -> Iterator[tuple[int, Row]]:
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield number, _object(line)


def _parquet(file: Path) -> Iterator[tuple[int, Row]]:
    number = 0
    with pq.ParquetFile(file, buffer_size=_BUFFER) as content:
        names = content.schema_arrow.names
        if len(set(names)) < len(names):
            raise DataError(f"{file}: two columns have the same name, of {cut(', '.join(names))}. Rename one.")
        for batch in content.iter_batches(batch_size=_ROWS):
            for (index, name), (narrow, text, wide) in itertools.product(enumerate(names), _WIDER):
                column = batch.column(index)
                if column.type == narrow:
                    batch = batch.set_column(index, name, column.cast(text).cast(wide))
            yield from enumerate(_plain(batch), number + 1)
            number += len(batch)


def _object(line: bytes) -> Row:
    """Returns the JSON object in a line, or why it cannot be read."""
    try:
        # Decimals keep trailing zeros, as in 12.40.
        found = json.loads(line.decode("utf-8-sig"), object_pairs_hook=_each_key_once, parse_float=Decimal)
    except BadRowError as error:
        return error
    except (ValueError, ArithmeticError, RecursionError) as error:  # also too many digits or too deep nesting
        return BadRowError(f"not JSON in UTF-8 that can be read: {cut(str(error))}")
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
        return batch.to_pylist()
    except (ValueError, OverflowError) as error:  # text that is not UTF-8, a date after the year 9999
        if len(batch) == 1:
            return [BadRowError(f"a value cannot be read: {cut(str(error))}")]
        return [row for index in range(len(batch)) for row in _plain(batch.slice(index, 1))]
