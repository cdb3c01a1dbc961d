"""Simulated runs and the paper's table as columns of plain text, for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from masters_ray.simulation.paper import GPUS, SLOWER_AT_MOST, Row
from masters_ray.simulation.sweep import Case


def lines(cases: Sequence[Case]) -> Iterator[str]:
    """A head, and a line for each run. Slower is its wall time to that of the first run, so the first should be the one
    to compare with. Raises ValueError without runs."""
    if not cases:
        raise ValueError("a table needs at least one run")
    pools = list(dict.fromkeys(name for case in cases for name in case.replicas))
    head = ["online", *pools, "wall", "slower", "learner busy", "waited", *(f"{name} busy" for name in pools)]
    head += ["mean age", "oldest", "fresh", "stored", "syncs"]
    base = cases[0].outcome.wall_seconds
    rows = []
    for case in cases:
        outcome = case.outcome
        rows.append(
            [
                _percent(case.share),
                *(str(case.replicas.get(name, "–")) for name in pools),
                _duration(outcome.wall_seconds),
                f"{outcome.wall_seconds / base:.2f} ×",
                _percent(outcome.learner_utilisation),
                _duration(outcome.waited_seconds),
                *(_percent(outcome.pool_utilisation.get(name)) for name in pools),
                "–" if outcome.mean_age is None else f"{outcome.mean_age:.1f}",
                "–" if outcome.largest_age is None else str(outcome.largest_age),
                str(outcome.fresh),
                str(outcome.stored),
                str(outcome.syncs),
            ]
        )
    yield from _columns(head, rows)


def paper_lines(rows: Sequence[Row]) -> Iterator[str]:
    """A head, a line for each online share, and what the columns mean."""
    head = ["online", "paper", "paper's rate", "GPUs beside", "hours", f"same {GPUS} GPUs"]
    yield from _columns(
        head,
        [
            [
                _percent(row.share),
                "–" if row.paper_hours is None else f"{row.paper_hours:.0f} h",
                f"{row.literal_hours:.0f} h",
                "not enough" if row.dedicated_gpus is None else str(row.dedicated_gpus),
                f"{row.dedicated_hours:.1f} h",
                f"{row.colocated_hours:.1f} h",
            ]
            for row in rows
        ],
    )
    yield ""
    yield "paper: hours of training (appendix F.2)."
    yield "paper's rate: 0.5 h for every 1,000 online samples (appendix F.9), the others at 49 h for all."
    yield f"GPUs beside, hours: simulated; the fewest GPUs for rollouts, beside the learner's {GPUS}, with which the"
    yield f"run takes at most {SLOWER_AT_MOST:g} × the hours of 0 %."
    yield f"same {GPUS} GPUs: simulated; learner and rollouts take turns."
    yield "Both at the rates of the paper's pre-generation (F.9), nothing measured; what is assumed beside them stands"
    yield "in masters_ray/simulation/paper.py (Assumed). Pre-generation for the offline share is in no column."


def _columns(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    for row in (head, *rows):
        yield "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.0f} %"


def _duration(seconds: float) -> str:
    """Example: ``59.9 s``, ``1.0 min``, ``2.5 h``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"
