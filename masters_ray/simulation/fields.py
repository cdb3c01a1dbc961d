"""Rows of a run's files, whose numbers are read with their place, so that an error can name it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from masters_ray.errors import StoreError


@dataclass(frozen=True)
class Fields:
    """A JSON object that knows its file, its place there, and how to mend the file."""

    file: Path
    at: str
    """Place in the file; "" is the whole of it."""
    content: dict[str, Any]
    remedy: str

    def number(self, key: str, least: int = 0) -> float:
        """A finite number of ``least`` or more. Raises StoreError when it is missing or something else."""
        value = self._value(key)
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not number or value < least:
            raise self._error(key, f"a number of {least} or more", repr(value))
        return float(value)

    def number_or_none(self, key: str, least: int = 0) -> float | None:
        """The same; null is None."""
        return None if self._value(key) is None else self.number(key, least)

    def below(self, key: str) -> Fields:
        """The object there. Raises StoreError when it is missing or something else."""
        value = self._value(key)
        if not isinstance(value, dict):
            raise self._error(key, "an object", repr(value))
        return Fields(self.file, self._place(key), value, self.remedy)

    def items(self) -> Iterator[tuple[str, Fields]]:
        """Objects by name, in the file's order. Raises StoreError when one of them is something else."""
        return ((key, self.below(key)) for key in self.content)

    def _value(self, key: str) -> Any:
        if key not in self.content:
            raise self._error(key, "this field", f"only {', '.join(self.content) or 'an empty object'}")
        return self.content[key]

    def _error(self, key: str, expected: str, found: str) -> StoreError:
        short = found if len(found) <= 80 else found[:80] + "…"
        return StoreError(f"{self.file}: {self._place(key)}: expected {expected}, found {short}. {self.remedy}")

    def _place(self, key: str) -> str:
        return f"{self.at}.{key}" if self.at else key


def read_object(file: Path, remedy: str) -> Fields:
    """A file that is one JSON object. Raises StoreError when it is missing, unreadable or something else."""
    return _parsed(file, "", _text(file, remedy), remedy)


def read_rows(file: Path, remedy: str) -> list[Fields]:
    """A file with one JSON object a line. A last line that a kill cut short does not count. Raises StoreError when the
    file is missing or unreadable, or another line is something else."""
    lines = _text(file, remedy).splitlines()
    if lines and not _is_json(lines[-1]):
        lines.pop()
    return [_parsed(file, f"line {number}", line, remedy) for number, line in enumerate(lines, 1)]


def _text(file: Path, remedy: str) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise StoreError(f"{file}: expected this file, found none. {remedy}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise StoreError(f"{file}: cannot be read ({error}). {remedy}") from error


def _is_json(line: str) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def _parsed(file: Path, at: str, text: str, remedy: str) -> Fields:
    place = f"{file}: {at}" if at else str(file)
    try:
        content = json.loads(text)
    except ValueError as error:
        raise StoreError(f"{place}: expected a JSON object, found {error}. {remedy}") from error
    if not isinstance(content, dict):
        raise StoreError(f"{place}: expected a JSON object, found {text.strip()[:80]}. {remedy}")
    return Fields(file, at, content, remedy)
