"""Reads the rows of a jsonl or parquet file one at a time; names other formats, with what to do."""

import codecs
import itertools
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq

from masters_ray.config import DataSource
from masters_ray.data.texts import BadRowError, bare, cut, shown
from masters_ray.errors import DataError

Row: TypeAlias = dict[str, Any] | BadRowError
"""Column name → value of a row, or why the row cannot be read."""
ONE_A_ROW = "masters_ray reads one question a row, with the columns question, answer and image"
_A_LINE = f"Write an object a line: jq -c '(arrays | .[]), objects' FILE > FILE.jsonl. {ONE_A_ROW}."
_MAGIC = {
    rb"\x1f\x8b|BZh|\xfd7zXZ\0|\x28\xb5\x2f\xfd|PK\x03\x04": ("a compressed file", f"Unpack it; {ONE_A_ROW}."),
    rb".{257}ustar": ("a tar archive (webdataset)", f"Unpack it; {ONE_A_ROW}."),
    rb"ARROW1|\xff{4}": ("Arrow", "Write it as parquet, what datasets.save_to_disk wrote with Dataset.to_parquet(…)."),
    rb"\xff\xfe|\xfe\xff|([^\0]\0){50}|(\0[^\0]){50}": ("UTF-16 text", "Write it in UTF-8: iconv -f UTF-16 -t UTF-8."),
    rb"(\xef\xbb\xbf)?\s*\[\s*\{": ("a JSON array", _A_LINE),
    rb"(\xef\xbb\xbf)?\s*\{\s*\n": ("JSON over several lines", _A_LINE),
}
"""First bytes of a file (pattern) → (what it is, remedy)."""
_WIDER = (
    (pa.float32(), pa.string(), pa.float64()),
    (pa.list_(pa.float32()), pa.list_(pa.string()), pa.list_(pa.float64())),
)
"""Types between which a column is cast in turn for the shortest decimals: 0.1, not 0.10000000149011612."""


def in_place_of(source: DataSource) -> str | None:
    """Returns "what is at the source's path. Remedy." when that is not a file of its format, judged by its first bytes;
    None when it may be one. Raises DataError when the file cannot be opened."""
    file = Path(source.path)
    with _reading(file):
        if not file.exists():
            return (
                "none. Set data.*.path to one existing file: addresses and patterns of names are not read, and of a "
                "data set of the Hub, datasets.load_dataset(…, split=…).to_parquet(…) writes a file."
            )
        if not file.is_file():
            return "a folder, or no ordinary file. Join the files of a split into one, for instance with to_parquet(…)."
        with file.open("rb") as content:
            head = content.read(1 << 16)
    start = bare(head.decode("utf-8", "replace"))
    if not start:
        return f"no row ({len(head)} bytes). Was it written to its end?"
    for first, (found, remedy) in _MAGIC.items():
        if re.match(first, head, re.DOTALL):
            return f"{found}. {remedy}"
    found = "parquet" if head.startswith(b"PAR1") else "jsonl" if re.search(r"^\s*[{\[]", start, re.MULTILINE) else ""
    if found == source.format or (source.format == "parquet" and not found):  # pyarrow says what is wrong with it
        return None
    if found:
        return f"{found}. Set data.*.format={found}."
    return f"lines such as {shown(start.splitlines()[0])}. {ONE_A_ROW}: convert it."


def origin(source: DataSource) -> Path:
    """Returns the source's file. Raises DataError when it is missing or begins like another format."""
    if found := in_place_of(source):
        raise DataError(f"{cut(source.path, 500)}: expected a {source.format} file, found {found}")
    return Path(source.path)


def rows(source: DataSource) -> Iterator[tuple[str, Row]]:
    """Yields ("file:row number from 1", row) of every row. Raises DataError when the file cannot be read."""
    file = origin(source)
    with _reading(file):
        for number, row in _jsonl(file) if source.format == "jsonl" else _parquet(file):
            yield f"{file}:{number}", row


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        reason = cut(" ".join(str(error).split()), 300)
        told = f"cannot be read: is it damaged, or cut short? ({reason}). Copy or write it again."
        raise DataError(f"{file}: {told}") from error


def _jsonl(file: Path) -> Iterator[tuple[int, Row]]:
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if line.removeprefix(codecs.BOM_UTF8).strip():
                yield number, _object(line)


def _parquet(file: Path) -> Iterator[tuple[int, Row]]:
    number = 0
    with pq.ParquetFile(file, buffer_size=1 << 20) as content:
        names = content.schema_arrow.names
        if len(set(names)) < len(names):
            raise DataError(f"{file}: two columns have the same name, of {cut(', '.join(names))}. Rename one.")
        for batch in content.iter_batches(batch_size=64):  # each row may hold pictures
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
        return batch.to_pylist(maps_as_pydicts="strict")
    except (ValueError, OverflowError, KeyError) as error:  # not UTF-8, a date after the year 9999, a key twice
        if len(batch) == 1:
            return [BadRowError(f"a value cannot be read: {cut(str(error))}")]
        return [row for index in range(len(batch)) for row in _plain(batch.slice(index, 1))]
