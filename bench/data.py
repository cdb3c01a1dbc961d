"""What reading data costs: ``make bench-data``.

``python -m bench.data`` measures; ``--markdown FILE`` prints what was measured before.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from bench.aims import Aim, entry
from bench.command import command
from bench.report import machine
from bench.sources import FEW, MANY, PICTURES, SOURCES
from bench.timing import ratios


def measure(repeats: int) -> dict[str, Any]:
    """All figures, each the median of the repeats."""
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in ("few", "many", "again", "one_percent")}
    with tempfile.TemporaryDirectory() as folder:
        _run("write", folder)
        for number in range(repeats):
            for name in runs:
                place = Path(folder) / f"{'many' if name == 'again' else name}-{number}.spool"
                runs[name].append(_run("read", folder, name, place))
            for spool in Path(folder).glob("*.spool"):
                spool.unlink()
    growth = ratios([one["peak_mib"] for one in runs["many"]], [one["peak_mib"] for one in runs["few"]])
    rows = [
        {
            "repeat": number,
            "rows per CPU second": many["rows"] / many["cpu_s"],
            f"peak, MiB, {FEW} rows": few["peak_mib"],
            f"{MANY} rows": many["peak_mib"],
            "of it at the start": few["start_mib"],
            "opened again, s": again["seconds"],
            "disk over the chosen rows": share["spool_bytes"] / share["chosen_bytes"],
        }
        for number, (few, many, again, share) in enumerate(zip(*runs.values(), strict=True), 1)
    ]

    def columns(*names: str) -> list[dict[str, Any]]:
        return [{name: row[name] for name in ("repeat", *names)} for row in rows]

    tables = {
        "rows_per_cpu_s": entry(
            f"rows read, decoded, checked and written per second of processor time: {MANY} of {SOURCES} sources",
            median(row["rows per CPU second"] for row in rows),
            Aim(),
            columns("rows per CPU second"),
        ),
        "peak_mib": entry(
            f"peak memory of the process with {MANY} rows over that with {FEW}",
            median(growth),
            Aim(most=1.2),
            columns(f"peak, MiB, {FEW} rows", f"{MANY} rows", "of it at the start"),
            {"mib": median(one["peak_mib"] for one in runs["many"])},
        ),
        "reopen_s": entry(
            f"seconds in which {MANY} rows of {SOURCES} sources about {PICTURES} picture files are opened again",
            median(row["opened again, s"] for row in rows),
            Aim(most=5),
            columns("opened again, s"),
        ),
        "disk_over_source": entry(
            "bytes written over those of the chosen rows, one of a hundred, with their pictures",
            median(row["disk over the chosen rows"] for row in rows),
            Aim(most=1.2),
            columns("disk over the chosen rows"),
        ),
    }
    on = machine(("pyarrow", "numpy", "pillow"))
    return {"machine": on, "repeats": repeats, **{key: one["value"] for key, one in tables.items()}, "tables": tables}


def _run(*arguments: object) -> dict[str, Any]:
    """What a part prints, from a process of its own."""
    words = [sys.executable, "-m", "bench.sources", *map(str, arguments)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{arguments} failed:\n{(done.stdout + done.stderr)[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(f"{arguments[0]} {arguments[2:3]}: {found}", flush=True)
    return found


if __name__ == "__main__":
    command("data", str(__doc__).splitlines()[0], 3, measure)
