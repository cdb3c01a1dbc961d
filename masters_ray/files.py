"""Files of a run: JSON and JSON lines, written whole or not at all, read with the reason why they cannot be."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from masters_ray.errors import MastersError, StoreError, writing


def read_json(file: Path) -> Any:
    """Content of a JSON file of the run. Raises StoreError when it is damaged."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise StoreError(f"{file}: not JSON ({error}). Delete it to make it again.") from error


def read_object(file: Path) -> dict[str, Any]:
    """The same of a file that holds a mapping. Raises StoreError when it holds something else, too."""
    content = read_json(file)
    if not isinstance(content, dict):
        raise StoreError(f"{file}: expected a mapping, found {type(content).__name__}. Delete it to make it again.")
    return content


def read_lines(file: Path) -> list[Any]:
    """Content of a JSON-lines file of the run; empty when there is none. A last line that a kill cut short does not
    count. Raises StoreError when another line is damaged."""
    if not file.exists():
        return []
    whole, _, _ = file.read_text(encoding="utf-8").rpartition("\n")
    try:
        return [json.loads(line) for line in whole.splitlines()]
    except ValueError as error:
        raise StoreError(f"{file}: a line is not JSON ({error}). Delete it to make it again.") from error


def append_lines(file: Path, rows: Sequence[Any]) -> None:
    """Add rows to a JSON-lines file of the run; a last line that a kill cut short is taken off first."""
    with writing(file), _for_adding(file) as lines:
        if lines.tell():
            lines.seek(-1, os.SEEK_END)
            if lines.read() != b"\n":
                lines.seek(0)
                lines.truncate(lines.read().rfind(b"\n") + 1)
        lines.write("".join(json.dumps(row) + "\n" for row in rows).encode())


def _for_adding(file: Path) -> IO[bytes]:
    file.parent.mkdir(parents=True, exist_ok=True)
    return file.open("ab+")


def write_json(file: Path, content: Any) -> None:
    """Whole or not at all. Raises StoreError when it cannot be written."""
    write_text(file, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def write_text(file: Path, text: str, kind: type[MastersError] = StoreError) -> None:
    """Whole or not at all; an existing file is replaced. Raises a ``kind`` when it cannot be written."""
    temporary = file.with_name(file.name + ".tmp")
    with writing(file, kind):
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(file)
