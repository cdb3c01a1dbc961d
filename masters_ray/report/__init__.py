"""Writes the report of a run: a single HTML file for readers who know neither the code nor the run. The file is
self-contained: pictures are data URIs, charts are inline SVG, and there is no script. Model answers are untrusted text:
the templates escape every value. The same inputs give the same bytes."""

import base64
import dataclasses
import io
import math
from collections import Counter
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

from PIL import Image

from masters_ray import remarks
from masters_ray.files import write_text
from masters_ray.records import Event, OnlineStep, SkippedStep, StageOutcome, StepMetrics
from masters_ray.report import card, instabilities
from masters_ray.report.charts import MANY, Series, beyond, curve_chart, line_chart, mask_chart, rows_chart
from masters_ray.report.render import percent, render
from masters_ray.report.summary import Example, Summary, read_examples, read_metrics, read_optional, read_summary

REPORT = "report.html"
_MOST_KINDS = 50  # most kinds whose accuracies are shown; the ones with the most questions are chosen
MOST_BYTES = 2_000_000  # size above which a page is thinned


_THINNER = ((1000, 0, MANY), (1000, 480, MANY), (8, 320, 300), (4, 240, 200), (1, 160, 100))
"""Tried in turn until a page is small enough: most examples of each sort; most pixels of a picture's longer side, 0 for
those of examples.json; most points of a curve."""


def write(folder: Path) -> Path:
    """Writes a run's ``report.html`` from its summary.json, metrics.jsonl and examples.json, and from events.jsonl and
    skipped.jsonl where there are any; returns its path. Raises StoreError, naming file and remedy, when a file is
    missing, unreadable or lacks a value; an existing report then stays. A page of more than MOST_BYTES is thinned.
    Writes the model cards, too (``card``)."""
    summary, metrics, examples = read_summary(folder), read_metrics(folder), read_examples(folder)
    events = read_optional(folder, "events.jsonl", Event)
    values = _values(summary) | {
        "all_examples": examples,
        "metrics": metrics,
        "events": events,
        "calls": _calls(events),
        "skipped": read_optional(folder, "skipped.jsonl", SkippedStep),
        "spikes": instabilities.find_spikes(metrics),
        "collapse": instabilities.collapse(metrics),
        "risen": instabilities.rise_of_zero_std(metrics),
        "beyond": partial(beyond, metrics),
        "peaks": {name: _peak(metrics, name) for name in StepMetrics.__dataclass_fields__},
        "work": _work([*summary.stages, *read_optional(folder, "online.jsonl", OnlineStep)]),
    }
    curves = {points: cache(partial(curve_chart, metrics, points=points)) for *_, points in _THINNER}
    for most, pixels, points in _THINNER:
        shown = [_smaller(one, pixels) for one in _some(examples, most)]
        own = {"examples": shown, "curve": curves[points], "pixels": pixels, "points": points, "MANY": MANY}
        page = render(__package__, "report.html.jinja", **values, **own)
        if len(page.encode("utf-8", "replace")) <= MOST_BYTES:
            break
    write_text(folder / REPORT, page)
    card.write(folder, summary, verdict(summary))
    return folder / REPORT


def _values(summary: Summary) -> dict[str, Any]:
    """Returns what the templates show of a summary."""
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
    return {
        "name": Path(summary.dir).name or summary.dir,
        "summary": summary,
        "verdict": verdict(summary),
        "kinds": kinds,
        "hidden": len(by_kind) - len(kinds),
        "accuracy_chart": rows_chart("accuracy", labels[first:], series, "accuracy on held-out questions (%)"),
        "all_set_aside": sum(sum(stage.set_aside.values()) for stage in summary.stages),
        "mask_chart": mask_chart,
        "remarks": remarks,
        "phases": phases,
        "series": Series,
        "line_chart": line_chart,
    }


def _peak(metrics: Sequence[StepMetrics], field: str) -> float:
    """Returns the largest absolute value of a metric; NaN when it was not measured."""
    return max((abs(getattr(row, field)) for row in metrics if math.isfinite(getattr(row, field))), default=math.nan)


def _work(made: Sequence[StageOutcome | OnlineStep]) -> dict[str, Counter[str]]:
    """Returns "pool.method" → its sums over the rollouts of all stages and online iterations, as they noted them."""
    sums: dict[str, Counter[str]] = {}
    for name, of_call in (item for one in made for item in one.calls.items()):
        sums.setdefault(name, Counter()).update(of_call)
    return sums


def _calls(events: Sequence[Event]) -> list[dict[str, str]]:
    """Returns the events of each call of the command, kind → text; "time": its start. One that was killed has no
    "end"."""
    found: list[dict[str, str]] = []
    for one in events:
        if one.kind == "start":
            found.append({"time": one.time})
        if found:
            found[-1][one.kind] = one.text
    return found


def verdict(summary: Summary) -> str:
    """Says whether the paired 95 % interval of the change excludes 0, and which part of the way to the teacher is
    made."""
    before, after, teacher = (
        getattr(summary.accuracy, name).value for name in ("student_before", "student_after", "teacher")
    )
    if not math.isfinite(after - before):
        return "One of the two accuracies was not measured, so there is nothing to compare."
    paired, gain = summary.change, after - before
    points = f"{100 * abs(gain):.1f} points"
    if paired is None:
        return f"A change of {100 * gain:+.1f} points. How many questions changed was not noted by this version."
    bounds = f"95 % interval {100 * paired.low:+.1f} to {100 * paired.high:+.1f}, paired over the same questions"
    if not paired.settled:
        word = "gain" if gain > 0 else "loss" if gain < 0 else "difference"
        return f"A {word} of {points} ({bounds}): with so many questions it may be chance."
    if gain <= 0:
        return f"A loss of {points} ({bounds}): more than the choice of questions explains."
    told = f"A gain of {points} ({bounds}): more than the choice of questions explains."
    if after >= teacher:
        return f"{told} The student is now level with its teacher or above it."
    return f"{told} That is {percent(gain / (teacher - before), 0)} of the way to its teacher."


def _some(examples: Sequence[Example], most: int) -> list[Example]:
    """Returns at most ``most`` examples of each sort."""
    sorts = ([one for one in examples if bool(one.answers) == learned] for learned in (True, False))
    return [one for of_sort in sorts for one in of_sort[:most]]


def _smaller(example: Example, pixels: int) -> Example:
    """Returns the example with pictures whose longer side has at most ``pixels``; 0: as they are."""

    def smaller(uri: str) -> str:
        if not pixels or not uri.startswith("data:image/"):
            return uri
        with Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) as picture:
            picture.thumbnail((pixels, pixels))
            content = io.BytesIO()
            picture.convert("RGB").save(content, "JPEG", quality=80)
        return f"data:image/jpeg;base64,{base64.b64encode(content.getvalue()).decode()}"

    return dataclasses.replace(example, pictures=[smaller(uri) for uri in example.pictures])
