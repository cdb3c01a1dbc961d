"""Sources of many rows, and what it takes to read them; run as a program, it loads no torch.

``python -m bench.sources write FOLDER``; ``… read FOLDER few|many|again|one_percent SPOOL`` prints figures.
"""

from __future__ import annotations

import io
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from bench.scale import at
from masters_ray import data
from masters_ray.config import DataSource

FEW, MANY = at((100_000, 1_000_000), (200, 400))
SOURCES = 40
PICTURES = at(100_000, 50)
"""Picture files that the jsonl sources' rows are about."""
_LARGE, _LARGE_BYTES = at((10_000, 40_000), (200, 40_000))
"""Rows of the source of which few are taken, and bytes of each one's picture."""
_KINDS = 8


def write(folder: Path) -> None:
    """Writes half of the sources as jsonl about picture files, half as parquet with pictures in it, each with the rows
    for MANY; FEW takes the beginnings. And a source with large pictures."""
    (folder / "pictures").mkdir()
    content = io.BytesIO()
    Image.new("RGB", (16, 16), (200, 40, 40)).save(content, "PNG")
    small = content.getvalue()
    for number in range(PICTURES):
        (folder / "pictures" / f"{number}.png").write_bytes(small + number.to_bytes(4, "big"))
    for name, rows in (("few", FEW // SOURCES), ("many", MANY // SOURCES)):
        for source in range(SOURCES):
            table = [_row(source, number) for number in range(rows)]
            if source % 2:
                pictures = [{"bytes": small, "path": None}] * rows
                columns = pa.Table.from_pylist(table).append_column("image", pa.array(pictures))
                pq.write_table(columns, folder / f"{name}-{source}.parquet", row_group_size=1000)
                continue
            with (folder / f"{name}-{source}.jsonl").open("w", encoding="utf-8") as lines:
                for number, row in enumerate(table):
                    picture = (source * rows // 2 + number) // 5 % PICTURES
                    lines.write(json.dumps(row | {"image": f"pictures/{picture}.png"}) + "\n")
    random = np.random.default_rng(0)
    noise = [small + random.bytes(_LARGE_BYTES) for _ in range(_LARGE)]
    table = pa.Table.from_pylist([_row(0, number) for number in range(_LARGE)])
    pictures = pa.array([{"bytes": one, "path": None} for one in noise])
    pq.write_table(table.append_column("image", pictures), folder / "large.parquet", row_group_size=100)


def _row(source: int, number: int) -> dict[str, str]:
    """Its question is as long as usual ones."""
    question = f"What does the shape with the number {number} of source {source} look like, and what stands beside it?"
    return {"id": str(number), "question": question, "answer": "a red square", "kind": f"kind {number % _KINDS}"}


def read(folder: Path, name: str, spool: Path) -> dict[str, Any]:
    """Loads a set of sources, or opens its spool; in a process of its own."""
    if name == "one_percent":
        sources = [DataSource(path=str(folder / "large.parquet"), rows=_LARGE // 100)]
    else:
        kind = "few" if name == "few" else "many"
        paths = [folder / f"{kind}-{one}.{'parquet' if one % 2 else 'jsonl'}" for one in range(SOURCES)]
        sources = [DataSource(path=str(path), name=path.stem) for path in paths]
    start, busy, began = _peak(), time.process_time(), time.perf_counter()
    loaded = data.load(sources, 0, 0.0, spool=spool)
    seconds, cpu = time.perf_counter() - began, time.process_time() - busy
    chosen = 0
    if name == "one_percent":
        texts = ((one.id, one.question, one.label, one.kind, one.pictures[0].data or b"") for one in loaded)
        chosen = sum(sum(map(len, row)) for row in texts)
    found = {"rows": len(loaded), "seconds": seconds, "cpu_s": cpu, "start_mib": start, "peak_mib": _peak()}
    return found | {"spool_bytes": spool.stat().st_size, "chosen_bytes": chosen}


def _peak() -> float:
    """MiB; the kernel's count of this program, as rusage has that of the program that started it."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return int(next(one for one in lines if one.startswith("VmHWM:")).split()[1]) / 1024


if __name__ == "__main__":
    what, where, *more = sys.argv[1:]
    if what == "write":
        write(Path(where))
    print(json.dumps(read(Path(where), more[0], Path(more[1])) if what == "read" else {}))
