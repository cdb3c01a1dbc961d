"""Texts that a configuration takes from elsewhere (``${oc.env:…}``): used as they are there, shown as they are
written."""

from __future__ import annotations

import dataclasses
import typing
from pathlib import Path
from typing import Any, Literal


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


def remember(section: Any, tree: dict[str, Any]) -> None:
    """Make the texts of a section that are interpolations in ``tree`` ``Written``; not those of which the schema lists
    all: a run must notice when they change."""
    hints = typing.get_type_hints(type(section))
    for entry in dataclasses.fields(section):
        if typing.get_origin(hints[entry.name]) is not Literal:
            value = getattr(section, entry.name)
            setattr(section, entry.name, _remembered(value, tree[entry.name]))


def _remembered(value: Any, written: Any) -> Any:
    if dataclasses.is_dataclass(value) and isinstance(written, dict):
        remember(value, written)
    elif isinstance(value, list) and isinstance(written, list):
        return [_remembered(one, other) for one, other in zip(value, written, strict=True)]
    elif isinstance(value, str) and isinstance(written, str) and value != written:
        return Written(value, written)
    return value
