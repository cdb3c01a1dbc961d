"""JSON values that know their file and place, so that a wrong one can be named."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from masters_ray.errors import StoreError

_REMEDY = (
    "Put it back from a copy. A run that is not finished writes it with the same command; one that is finished has to "
    "be run again in another run.dir."
)


@dataclass(frozen=True)
class Value:
    """A JSON value that knows where it stands. Every reading raises StoreError when the value is not of that type."""

    file: Path
    at: str
    value: Any

    def fail(self, expected: str) -> NoReturn:
        found = repr(self.value)
        raise StoreError(
            f"{self.file}: expected {expected} at {self.at or 'the top'}, "
            f"found {found if len(found) <= 60 else found[:60] + '…'}. {_REMEDY}"
        )

    def __getitem__(self, key: str) -> Value:
        if not isinstance(self.value, dict):
            self.fail("an object")
        if key not in self.value:
            raise StoreError(f"{self.file}: {self._below(key)} is missing. {_REMEDY}")
        return Value(self.file, self._below(key), self.value[key])

    def has(self, key: str) -> bool:
        if not isinstance(self.value, dict):
            self.fail("an object")
        return key in self.value

    def items(self) -> Iterator[tuple[str, Value]]:
        if not isinstance(self.value, dict):
            self.fail("an object")
        return ((str(key), self[key]) for key in self.value)

    def rows(self) -> Iterator[Value]:
        if not isinstance(self.value, list):
            self.fail("a list")
        return (Value(self.file, f"{self.at}[{place}]", value) for place, value in enumerate(self.value))

    def text(self) -> str:
        if not isinstance(self.value, str):
            self.fail("text")
        return self.value.encode("utf-8", "replace").decode("utf-8")  # half of a surrogate pair cannot be written

    def text_or_none(self) -> str | None:
        return None if self.value is None else self.text()

    def whole(self) -> int:
        if isinstance(self.value, bool) or not isinstance(self.value, int):
            self.fail("a whole number")
        return self.value

    def whole_or_none(self) -> int | None:
        return None if self.value is None else self.whole()

    def number(self) -> float:
        """A float; null is NaN."""
        if self.value is None:
            return math.nan
        if isinstance(self.value, bool) or not isinstance(self.value, int | float):
            self.fail("a number")
        return float(self.value)

    def _below(self, key: str) -> str:
        return f"{self.at}.{key}" if self.at else key


def read_text(file: Path) -> str:
    """The content of a text file. Raises StoreError when it is missing or unreadable."""
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise StoreError(f"{file}: missing. {_REMEDY}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise StoreError(f"{file}: cannot be read ({error}). {_REMEDY}") from error


def read_json(file: Path) -> Value:
    """The content of a JSON file. Raises StoreError when it is missing, unreadable or not JSON."""
    return parse_json(file, read_text(file))


def parse_json(file: Path, content: str, at: str = "") -> Value:
    """A JSON text that stands in ``file`` at ``at``. Raises StoreError when it is not JSON."""
    try:
        return Value(file, at, json.loads(content))
    except ValueError as error:
        raise StoreError(f"{file}: expected JSON{at and ' in ' + at}, found {error}. {_REMEDY}") from error
