"""Writes the report of a run: a single HTML file for readers who know neither the code nor the run. The file is
self-contained: pictures are data URIs, charts are inline SVG, and there is no script. Model answers are untrusted text:
the templates escape every value. The same inputs give the same bytes."""

import math
from functools import partial
from pathlib import Path

from masters_ray import remarks
from masters_ray.files import write_text
from masters_ray.report.charts import Series, curve_chart, mask_chart, rows_chart
from masters_ray.report.render import percent, render
from masters_ray.report.summary import Accuracies, read_examples, read_metrics, read_summary

REPORT = "report.html"
_MOST_KINDS = 50
"""Most kinds whose accuracies are shown; the ones with the most questions are chosen."""


def write(folder: Path) -> Path:
    """Writes a run's ``report.html`` from its three files; returns its path. Raises StoreError, naming file and remedy,
    when a file is missing, unreadable or lacks a value; an existing report then stays."""
    summary, metrics = read_summary(folder), read_metrics(folder)
    found = summary.accuracy
    by_kind = found.student_after.by_kind
    kinds = sorted(sorted(by_kind, key=lambda kind: -by_kind[kind].n)[:_MOST_KINDS])
    labels = ["all kinds (mean)", *kinds]
    first = 1 if len(kinds) == 1 else 0  # with a single kind the mean is the same: leave it out
    series = [
        Series(label, colour, marker, [of, *(of.by_kind.get(kind) for kind in kinds)][first:])
        for label, colour, marker, of in (
            ("student before", "before", "o", found.student_before),
            ("student after", "after", "D", found.student_after),
            ("teacher", "teacher", "s", found.teacher),
        )
    ]
    phases = {name: seconds for name, seconds in summary.phases.items() if math.isfinite(seconds)}
    rest = summary.wall_seconds - sum(phases.values())
    if rest > 0.005 * summary.wall_seconds:
        phases["everything else"] = rest
    page = render(
        __package__,
        "report.html.jinja",
        name=Path(summary.dir).name or summary.dir,
        summary=summary,
        verdict=verdict(found),
        kinds=kinds,
        hidden=len(by_kind) - len(kinds),
        accuracy_chart=rows_chart("accuracy", labels[first:], series, "accuracy on held-out questions (%)"),
        all_set_aside=sum(sum(stage.set_aside.values()) for stage in summary.stages),
        examples=read_examples(folder),
        metrics=metrics,
        mask_chart=mask_chart,
        curve=partial(curve_chart, metrics),
        remarks=remarks,
        phases=phases,
    )
    write_text(folder / REPORT, page)
    return folder / REPORT


def verdict(found: Accuracies) -> str:
    """Says whether the 95 % intervals before and after are apart, and which part of the way to the teacher is made."""
    before, after, teacher = found.student_before, found.student_after, found.teacher
    change = after.value - before.value
    if not math.isfinite(change):
        return "One of the two accuracies was not measured, so there is nothing to compare."
    direction = "gain" if change > 0 else "loss" if change < 0 else "difference"
    told = f"a {direction} of {100 * abs(change):.1f} points"
    if before.high >= after.low and after.high >= before.low:
        told = f"on so many questions {told} may still be chance, though it need not be."
        return f"The two 95 % intervals overlap: {told}"
    told = f"The two 95 % intervals are apart: {told}, more than the choice of questions explains."
    if change <= 0:
        return told
    if after.value >= teacher.value:
        return f"{told} The student is now level with its teacher or above it."
    return f"{told} That is {percent(change / (teacher.value - before.value), 0)} of the way to its teacher."
