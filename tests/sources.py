"""Small sources that tests read."""

from __future__ import annotations

import json
from pathlib import Path

from masters_ray.config import DataSource
from tests.builders import png


def jsonl(folder: Path, rows: list) -> DataSource:
    """A file of those rows, each an object or a line as it stands, beside a picture ``a.png``."""
    (folder / "a.png").write_bytes(png())
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / "rows.jsonl").write_text("\n".join(lines) + "\n")
    return DataSource(format="jsonl", path=str(folder / "rows.jsonl"))


def good(number: int, **more: object) -> dict:
    """A row that can be used, and what differs in it."""
    return {"id": f"q{number}", "question": f"what is {number}?", "answer": "red", "image": "a.png", **more}
