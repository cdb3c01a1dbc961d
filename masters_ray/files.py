"""Files of a run: JSON and JSON lines, written whole or not at all, read with the reason why they cannot be."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BeforeValidator, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails, to_jsonable_python

from masters_ray.errors import MastersError, StoreError, writing

T = TypeVar("T")

MADE_AGAIN = "Delete it to make it again."
"""Remedy for a damaged file that the same command writes once more."""

HALF_WRITTEN = ".tmp"
"""How a file's name ends until all of it is there."""
_TOLD = 3
"""Wrong values of a record that its error names."""
Measured = Annotated[float, BeforeValidator(lambda value: math.nan if value is None else value)]
"""A field of a record for a number that may be missing: NaN in Python, null in JSON."""


def read_record(file: Path, kind: type[T], remedy: str) -> T:
    """The JSON file as a ``kind``: a dataclass, or a list or dict of them. Types are strict (1 is no text, "1" no
    number); unknown keys are ignored. Raises StoreError with file, keys, what was expected and the remedy."""
    return _record(file, "", _text(file, remedy), TypeAdapter(kind), remedy)


def read_records(file: Path, kind: type[T], remedy: str) -> list[T]:
    """The same of every line of a JSON-lines file. A last line that a kill cut short does not count."""
    whole, _, _ = _text(file, remedy).rpartition("\n")
    adapter = TypeAdapter(kind)
    lines = [(f"line {number}", line) for number, line in enumerate(whole.split("\n"), 1) if line.strip()]
    return [_record(file, where, line, adapter, remedy) for where, line in lines]


def as_json(record: Any) -> Any:
    """Records as values of JSON, the inverse of ``read_record``: null stands for a number that is not finite."""
    return to_jsonable_python(record, inf_nan_mode="null")


def _text(file: Path, remedy: str) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise StoreError(f"{file}: missing. {remedy}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise StoreError(f"{file}: cannot be read ({error}). {remedy}") from error


def _record(file: Path, line: str, text: str, kind: TypeAdapter[T], remedy: str) -> T:
    where = f"{file}: {line}".removesuffix(": ")
    try:
        # Half of a surrogate pair, which a model may write, cannot be encoded: it becomes a question mark.
        content = json.dumps(json.loads(text), ensure_ascii=False).encode("utf-8", "replace")
    except ValueError as error:
        raise StoreError(f"{where}: not JSON ({error}). {remedy}") from error
    try:
        return kind.validate_json(content, strict=True)
    except ValidationError as error:
        told = [_complaint(one) for one in error.errors(include_url=False)]
        more = f"; and {len(told) - _TOLD} more" if len(told) > _TOLD else ""
        raise StoreError(f"{where}: {'; '.join(told[:_TOLD])}{more}. {remedy}") from error


def _complaint(error: ErrorDetails) -> str:
    place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error["loc"]).removeprefix(".")
    found, expected = repr(error["input"]), error["msg"].replace("Input should be", "expected", 1)
    if error["type"] == "missing":
        found, expected = "none", "expected a value"
    return f"{place or 'the top'}: {expected}, found {found if len(found) <= 60 else f'{found[:60]}…'}"


def read_json(file: Path) -> Any:
    """Content of a JSON file that the run makes again when it is gone. Raises StoreError when it is damaged."""
    return read_record(file, Any, MADE_AGAIN)


def read_object(file: Path) -> dict[str, Any]:
    """The same of a file that holds an object."""
    return read_record(file, dict[str, Any], MADE_AGAIN)


def read_lines(file: Path) -> list[Any]:
    """The same of every line of a JSON-lines file, as ``read_records``; empty when there is no file."""
    return read_records(file, Any, MADE_AGAIN) if file.exists() else []


def append_lines(file: Path, rows: Sequence[Any]) -> None:
    """Add rows to a JSON-lines file of the run; a last line that a kill cut short is taken off first."""
    with writing(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("ab+") as lines:
            if lines.tell():
                lines.seek(-1, os.SEEK_END)
                if lines.read() != b"\n":
                    lines.seek(0)
                    lines.truncate(lines.read().rfind(b"\n") + 1)
            lines.write("".join(json.dumps(row) + "\n" for row in rows).encode())


def write_json(file: Path, content: Any) -> None:
    """Whole or not at all. Raises StoreError when it cannot be written."""
    write_text(file, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def write_text(file: Path, text: str, kind: type[MastersError] = StoreError) -> None:
    """Whole or not at all; an existing file is replaced. Raises a ``kind`` when it cannot be written."""
    write_bytes(file, text.encode(), kind)


def write_bytes(file: Path, content: bytes | memoryview, kind: type[MastersError] = StoreError) -> None:
    """The same of bytes. They are on the device before the file has its name."""
    temporary = file.with_name(file.name + HALF_WRITTEN)
    with writing(file, kind):
        file.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as whole:
            whole.write(content)
            whole.flush()
            os.fsync(whole.fileno())
        temporary.replace(file)
