"""Small sources that tests read."""

import json
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from masters_ray import data
from masters_ray.config import DataSource
from tests.builders import png


def jsonl(folder: Path, rows: list) -> DataSource:
    """A file of those rows, each an object or a line as it stands, beside a picture ``a.png``."""
    (folder / "a.png").write_bytes(png())
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / "rows.jsonl").write_text("\n".join(lines) + "\n")
    return DataSource(path=str(folder / "rows.jsonl"))


def good(number: int, **more: object) -> dict:
    """A row that can be used, and what differs in it."""
    return {"id": f"q{number}", "question": f"what is {number}?", "answer": "red", "image": "a.png", **more}


def parquet(file: Path, rows: list[dict[str, Any]], **types: pa.DataType) -> DataSource:
    """A file of those rows with a question and a picture each; columns have the types that are named."""
    table = pa.Table.from_pylist([{"question": "q?", "image": png()} | row for row in rows])
    for name, kind in types.items():
        values = pa.array([row[name] for row in rows], kind)
        table = table.set_column(table.schema.get_field_index(name), name, values)
    pq.write_table(table, file, row_group_size=2)
    return DataSource(path=str(file))


def load(source: DataSource | list[DataSource], share: float = 1.0, **more: Any) -> data.Problems:
    """``data.load`` with seed 0 into a spool of its own."""
    sources = source if isinstance(source, list) else [source]
    with tempfile.TemporaryDirectory() as folder:
        return data.load(sources, 0, share, spool=Path(folder) / "spool", **more)
