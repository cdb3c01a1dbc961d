"""The result as people read it: lines in a terminal, Markdown for a page; and what it was measured on."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any


def machine(packages: Sequence[str]) -> dict[str, Any]:
    """Processor, cores, threads, versions of these packages, the day."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": int(os.environ["OMP_NUM_THREADS"]),
        "versions": {name: version(name) for name in packages},
        "date": date.today().isoformat(),
    }


def line(key: str, entry: Mapping[str, Any]) -> str:
    """One figure with its aim."""
    return f"{key:<28} {_number(entry['value']):>8}   {_aim(entry)}"


def markdown(result: Mapping[str, Any]) -> str:
    """All figures in one table, then the table behind each."""
    on = result["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in on["versions"].items())
    rows = [
        {"key": f"`{key}`", "what": entry["says"], "figure": entry["value"], "aim": _aim(entry)}
        for key, entry in result["tables"].items()
    ]
    parts = [
        f"{on['date']}, {on['processor']}, {on['threads']} thread of {on['cores']} cores, {result['repeats']} repeats; "
        f"{versions}.",
        _table(rows),
    ]
    for key, entry in result["tables"].items():
        parts.append(f"### `{key}`")
        parts.append(_table(entry["rows"]))
        if entry["also"]:
            parts.append("\n".join(f"* {name.replace('_', ' ')}: {_number(n)}" for name, n in entry["also"].items()))
    return "\n\n".join(parts) + "\n"


def _aim(entry: Mapping[str, Any]) -> str:
    if entry["met"] is None:
        return "no aim"
    return f"{entry['aim']}: {'met' if entry['met'] else 'NOT MET'}"


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    head = list(rows[0])
    lines = [head, ["---"] * len(head), *([_number(row[name]) for name in head] for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _number(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    if value and abs(value) < 1e-3:
        return f"{value:.1e}"
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _processor() -> str:
    for entry in Path("/proc/cpuinfo").read_text().splitlines():
        if entry.startswith("model name"):
            return entry.partition(":")[2].strip()
    return "unknown"
