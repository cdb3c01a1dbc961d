"""Reads and writes a run's JSON and JSON-lines files: writes are atomic, failed reads name the file and the remedy."""

import json
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, BinaryIO, TypeVar

from pydantic import BeforeValidator, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails, to_jsonable_python

from masters_ray.errors import MastersError, StoreError, writing

T = TypeVar("T")

MADE_AGAIN = "Delete it to make it again."
HALF_WRITTEN = ".tmp"  # suffix of a file's name while it is being written
Measured = Annotated[float, BeforeValidator(lambda value: math.nan if value is None else value)]
"""Type of a record's field whose number may be missing: NaN in Python, null in JSON."""


def read_record(file: Path, kind: type[T], remedy: str = MADE_AGAIN) -> T:
    """Reads a JSON file as a ``kind``: a dataclass, or a list or dict of them. Types are strict (1 is not a text, "1"
    not a number); unknown keys are ignored. Raises StoreError with file, keys, what was expected and the remedy."""
    return _record(str(file), _text(file, remedy), TypeAdapter(kind), remedy)


def read_records(file: Path, kind: type[T], remedy: str) -> list[T]:
    """Reads every line of a JSON-lines file as in ``read_record``; ignores a last line that a kill cut short."""
    whole, _, _ = _text(file, remedy).rpartition("\n")
    adapter = TypeAdapter(kind)
    lines = [(f"{file}: line {number}", line) for number, line in enumerate(whole.split("\n"), 1) if line.strip()]
    return [_record(where, line, adapter, remedy) for where, line in lines]


def as_json(record: Any) -> Any:
    """Returns records as JSON values, the inverse of ``read_record``; a number that is not finite becomes null."""
    return to_jsonable_python(record, inf_nan_mode="null")


def _text(file: Path, remedy: str) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise StoreError(f"{file}: missing. {remedy}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise StoreError(f"{file}: cannot be read ({error}). {remedy}") from error


def _record(where: str, text: str, kind: TypeAdapter[T], remedy: str) -> T:
    try:
        # A model may write half of a surrogate pair, which UTF-8 cannot encode: replace it by a question mark.
        content = json.dumps(json.loads(text), ensure_ascii=False).encode("utf-8", "replace")
    except ValueError as error:
        raise StoreError(f"{where}: not JSON ({error}). {remedy}") from error
    try:
        return kind.validate_json(content, strict=True)
    except ValidationError as error:
        told = "; ".join(map(_complaint, error.errors()[:3]))
        raise StoreError(f"{where}: {told}. {remedy}") from error


def _complaint(error: ErrorDetails) -> str:
    place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error["loc"]).removeprefix(".")
    expected, found = error["msg"].replace("Input should be", "expected", 1), f"{error['input']!r:.60}"
    if error["type"] == "missing":
        expected, found = "expected a value", "none"
    return f"{place or 'the top'}: {expected}, found {found}"


def read_lines(file: Path) -> list[Any]:
    """Reads every line as ``read_records`` does; returns an empty list without a file."""
    return read_records(file, Any, MADE_AGAIN) if file.exists() else []


def append_lines(file: Path, rows: Sequence[Any]) -> None:
    """Appends rows to a JSON-lines file; first removes a last line that a kill cut short. Raises StoreError."""
    with writing(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("ab+") as lines:
            if lines.tell():
                lines.seek(-1, os.SEEK_END)
                if lines.read() != b"\n":
                    lines.seek(0)
                    lines.truncate(lines.read().rfind(b"\n") + 1)
            lines.write("".join(json.dumps(row) + "\n" for row in rows).encode())


def write_lines(file: Path, rows: Iterable[Any]) -> None:
    """Writes ``as_json`` of each row as a line."""
    write_text(file, "".join(json.dumps(as_json(row), ensure_ascii=False) + "\n" for row in rows))


def write_json(file: Path, content: Any) -> None:
    """Writes plain values, and ``as_json`` of records among them."""
    write_text(file, json.dumps(content, default=as_json, indent=1, ensure_ascii=False) + "\n")


def write_text(file: Path, text: str) -> None:
    write_bytes(file, text.encode())


def write_bytes(file: Path, content: bytes | memoryview) -> None:
    with new_file(file) as whole:
        whole.write(content)


@contextmanager
def new_file(file: Path, kind: type[MastersError] = StoreError) -> Iterator[BinaryIO]:
    """Yields a binary file that replaces ``file`` when the block ends without an error: synced to disk before it gets
    its final name. Raises ``kind`` when it cannot be written."""
    temporary = file.with_name(file.name + HALF_WRITTEN)
    with writing(file, kind):
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as whole:
                yield whole
                whole.flush()
                os.fsync(whole.fileno())
            temporary.replace(file)
        finally:
            temporary.unlink(missing_ok=True)
