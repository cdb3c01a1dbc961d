"""Compares a finished run's report, its texts and its charts, with what ``Recomputed`` finds in the run's files."""

import json
import re
from collections.abc import Iterator, Sequence
from html import unescape
from pathlib import Path

from tests.charts import Axis, Chart
from tests.e2e.recomputed import MODELS, Recomputed, bounds, by_kind, mean_of_marks

PROSE = {
    "result": {"95", "0", "1"},  # and the picture's words
    "accuracy": {"95"},
    "sources": set(),
    "stages": {"0"},
    "learning": {"1", "0", "2", "0.693", "60", "0.001", "learner.updates_per_step=1"},
    "judge": {"95"},
    "examples": {"0", "1"},
    "run": {"0"},
}
"""Figures of the sentences that are the same on every page, by section."""


def sections(html: str) -> dict[str, str]:
    """Section → what a reader sees of it, without charts and configuration; each tag is a blank."""
    found = re.findall(r'<section id="(\w+)">(.*?)</section>', html, re.DOTALL)
    unseen = r"<svg.*?</svg>|<pre>.*?</pre>"
    return {
        name: " ".join(unescape(re.sub("<[^>]+>", " ", re.sub(unseen, "", inner, flags=re.DOTALL))).split())
        for name, inner in found
    }


def figures(text: str) -> set[str]:
    """The words of a text that hold a digit, without the signs around them."""
    return {word.strip("()[];:,.%“”‘’\"'`") for word in re.split(r"[\s–]+", text) if re.search(r"\d", word)}


def complaints(run: Path) -> list[str]:
    """What the report does not say although the files do, and figures that it shows although the files do not."""
    html, of = (run / "report.html").read_text(), Recomputed(run)
    shown = sections(html)
    expected = {
        "result": of.result(),
        "accuracy": of.accuracy(),
        "sources": of.sources(),
        "stages": of.stages_(),
        "learning": of.learning(),
        "judge": of.judge(),
        "examples": of.examples(),
        "run": [*of.run_(), *of.quarantined()],
    }
    found = [] if shown.keys() == expected.keys() else [f"sections: {list(shown)}"]
    for section, rows in expected.items():
        found += [f"{section}: not there: {row}" for row in rows if " ".join(row.split()) not in shown[section]]
        known = figures(" ".join(rows)) | PROSE[section]
        if section == "examples":  # what models say may hold digits
            known |= figures(" ".join(one["answer"] for marks in of.marks.values() for one in marks.values()))
        found += [f"{section}: not in the files: {one}" for one in sorted(figures(shown[section]) - known)]
    return [*found, *_charts(html, of)]


def _charts(html: str, of: Recomputed) -> list[str]:
    drawn = re.findall(r'id="([a-z_]+)-figure_1"', html)
    fields = [field for field in drawn if field in of.steps[0]]
    found = [f"accuracy: {what}" for what in _accuracies(html, of)]
    for field in fields if len(of.steps) <= 600 else ():
        outliers = {step for step, *_ in of.outliers(field)}
        values = {row["step"]: row[field] for row in of.steps if row["step"] not in outliers}
        chart, reach = Chart.of(html, field), max(map(abs, values.values())) or 1.0
        few = len(of.steps) <= 60  # then each has a marker; else a line leaves out points that lie on it
        # A line has more points where it leaves the axis.
        points = [
            (round(x), y)
            for x, y in (chart.points("after") if few else chart.line("after"))
            if abs(x - round(x)) < 0.02 and round(x) in values
        ]
        if len(points) < (len(values) if few else 2):
            found.append(f"{field}: {len(points)} of {len(values)} steps in its curve")
        found += [
            f"{field} at step {step}: {values[step]} in the files, {value} in its curve"
            for step, value in points
            if abs(values[step] - value) > 0.005 * reach
        ]
    return found


def _accuracies(html: str, of: Recomputed) -> Iterator[str]:
    """What the charts of accuracies show otherwise than the marks."""
    chart = Chart.of(html, "accuracy")
    for name, colour in zip(MODELS, ("before", "after", "teacher"), strict=True):
        marks = of.marks[name].values()
        rates = [(sum(right) / len(right), *bounds(sum(right), len(right))) for right in by_kind(marks).values()]
        yield from _differences(chart, "x", colour, [mean_of_marks(marks), *rates] if len(rates) > 1 else rates)
    if files := {int(file.stem.split("-")[1]): file for file in (of.run / "students").glob("step-*.json")}:
        asked = [json.loads(file.read_text())["marks"] for _, file in sorted(files.items())]
        ids = {one["id"] for one in asked[0]}
        before, after = ([of.marks[name][id] for id in ids] for name in ("student_before", "student_after"))
        points = [before, *asked, *([] if of.steps[-1]["step"] in files else [after])]
        yield from _differences(Chart.of(html, "course"), "y", "after", [mean_of_marks(marks) for marks in points])


def _differences(chart: Chart, axis: Axis, colour: str, known: Sequence[tuple[float, float, float]]) -> Iterator[str]:
    values = [100 * value for value, *_ in known]
    ends = [(100 * low, 100 * high) for _, low, high in known]
    pairs = [(values, chart.markers(colour, axis)), (sum(ends, ()), sum(chart.intervals(colour, axis), ()))]
    for expected, read in pairs:
        if len(expected) != len(read) or any(abs(a - b) > 0.3 for a, b in zip(expected, read, strict=True)):
            yield f"{expected} in the files, {read} in the chart"
