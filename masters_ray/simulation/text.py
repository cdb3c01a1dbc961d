"""Simulated runs as columns of plain text, for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

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
    yield from columns(head, rows)


def columns(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """A head and rows, each column as wide as its widest cell."""
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
