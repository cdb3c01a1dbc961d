"""Texts that a configuration takes from elsewhere (``${oc.env:…}``): used as they are there, shown as they are
written."""

from __future__ import annotations

from pathlib import Path
from typing import Any


class Written(str):
    """A text with what stands in its place in the configuration."""

    written: str

    def __new__(cls, text: str, written: str) -> Written:
        found = super().__new__(cls, text)
        found.written = written
        return found

    def __getnewargs__(self) -> tuple[str, str]:  # type: ignore[override]
        return str(self), self.written

    def __repr__(self) -> str:
        return repr(self.written)


def as_written(value: Any) -> Any:
    """A value, or mappings and lists of values, with what was written in place of what that stands for."""
    if isinstance(value, dict):
        return {key: as_written(one) for key, one in value.items()}
    if isinstance(value, list):
        return [as_written(one) for one in value]
    return value.written if isinstance(value, Written) else value


def joined(folder: str, name: str) -> str:
    """A path in a directory, which may be ``Written``."""
    path = str(Path(folder) / name)
    return Written(path, f"{folder.written}/{name}") if isinstance(folder, Written) else path
