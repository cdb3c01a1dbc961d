"""The charts, as inline SVG that follows the page's light or dark colours.

Colours are drawn with placeholders of ``COLOURS`` and replaced by the style sheet's variables. Only
``matplotlib.figure.Figure`` is used, so nothing depends on a display or on pyplot's state.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Sequence
from itertools import groupby
from typing import Any, Literal, NamedTuple

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter
from matplotlib.transforms import blended_transform_factory

from masters_ray.evaluate import Accuracy, Interval
from masters_ray.records import StepMetrics

COLOURS = {
    "before": "#c25e01",
    "after": "#0072b2",
    "teacher": "#00805c",
    "ink": "#1c2128",
    "muted": "#5c6571",
    "grid": "#dde1e6",
    "band": "#8a63b8",
}
"""Names of the style sheet's variables and the values that stand for them while drawing (after Okabe and Ito)."""
_SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "masters_ray",
    "text.parse_math": False,
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.edgecolor": COLOURS["grid"],
    "axes.labelcolor": COLOURS["muted"],
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 9,
    "grid.color": COLOURS["grid"],
    "grid.linewidth": 0.7,
    "text.color": COLOURS["ink"],
    "xtick.color": COLOURS["muted"],
    "ytick.color": COLOURS["muted"],
}
_styled = matplotlib.rc_context(_SETTINGS)
_LONGEST_NAME = 30
_MOST_BANDS = 40
FEW = 60
"""Up to so many steps every step gets a marker."""
MANY = 600
"""From more steps on, neighbours are drawn together."""
BINS = 250
"""Points that more than MANY steps are drawn as."""


class ChartLine(NamedTuple):
    """Values over some x with their intervals."""

    label: str
    colour: str
    """A name in COLOURS."""
    means: Sequence[Interval]


@_styled
def accuracy_chart(before: Accuracy, after: Accuracy, teacher: Accuracy) -> Markup:
    """Accuracy in percent with 95 % intervals: the mean over kinds, then each kind; before, after and the teacher's."""
    kinds = sorted({*before.by_kind, *after.by_kind, *teacher.by_kind})
    names = ["all kinds (mean)", *kinds] if len(kinds) > 1 else kinds or ["all"]
    figure, axes = _empty(6.4, 0.75 + 0.6 * len(names), grid="x")
    series = (("before", "student before", before, "o"), ("after", "student after", after, "D"))
    for offset, (role, label, outcome, marker) in enumerate((*series, ("teacher", "teacher", teacher, "s"))):
        for row, name in enumerate(names):
            if name in kinds and name not in outcome.by_kind:
                continue
            rate = outcome.by_kind.get(name, outcome)
            height = row + 0.25 * (offset - 1)
            value, low, high = 100 * rate.value, 100 * rate.low, 100 * rate.high
            colour, named = COLOURS[role], label if row == 0 else None
            axes.plot([low, high], [height, height], color=colour, linewidth=2.2, solid_capstyle="butt")
            style: dict[str, Any] = {"marker": marker, "markersize": 6, "linestyle": "none", "zorder": 3}
            axes.plot([value], [height], color=colour, clip_on=False, label=named, **style)
            text = f"{value:.1f}" if math.isfinite(value) else "not measured"
            axes.text(max(value, high) + 1.2 if math.isfinite(high) else 1, height, text, va="center", fontsize=8)
    for row in range(1, len(names)):
        axes.axhline(row - 0.5, color=COLOURS["grid"], linewidth=0.7)
    _name_rows(axes, names)
    axes.set_xlim(0, 108)
    axes.set_xticks(range(0, 101, 20))
    axes.set_xlabel("accuracy on held-out questions (%)")
    figure.legend(loc="outside upper center", ncols=3, frameon=False, handletextpad=0.3)
    return _svg(figure, "accuracy", "Accuracy by kind of question, before and after training and of the teacher")


@_styled
def mask_chart(metrics: Sequence[StepMetrics]) -> Markup:
    """The mask ratio in percent over the optimizer steps."""
    runs = _runs(metrics)
    figure, axes = _panel(metrics, "mask ratio (%)")
    edges = [runs[0].first - 0.5, *(run.last + 0.5 for run in runs)]
    axes.stairs([100 * run.ratio for run in runs], edges, color=COLOURS["band"], linewidth=2, baseline=None)
    axes.set_ylim(0, max(5.0, 115 * max(run.ratio for run in runs)))
    return _svg(figure, "mask", "Mask ratio over the optimizer steps")


@_styled
def curve_chart(
    metrics: Sequence[StepMetrics],
    field: str,
    label: str,
    limits: tuple[float, float] | None = None,
    error: str | None = None,
) -> Markup:
    """One field of the metrics over the optimizer steps; limits: the least that the axis spans; error: the field that
    says how far above it the true value may be, up to a dashed line."""
    steps = np.array([row.step for row in metrics], float)
    values = np.array([getattr(row, field) for row in metrics], float)
    values[~np.isfinite(values)] = np.nan
    seen = values[np.isfinite(values)]
    steep = seen.size > 2 and seen.min() > 0 and seen.max() > 50 * np.median(seen)
    figure, axes = _panel(metrics, f"{label} (log)" if steep else label)
    if steep:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    if seen.size:
        _draw(axes, steps, values)
        if error is not None:
            most = values + np.array([getattr(row, error) for row in metrics], float)
            axes.plot(*_strong(steps, most), color=COLOURS["muted"], linewidth=1.1, linestyle="--")
    else:
        axes.text(0.5, 0.5, "no finite values", transform=axes.transAxes, ha="center", color=COLOURS["muted"])
        axes.set_yticks([])
    if limits and not steep and seen.size:
        low, high = axes.get_ylim()
        margin = 0.03 * (limits[1] - limits[0])
        axes.set_ylim(min(low, limits[0] - margin), max(high, limits[1] + margin))
    return _svg(figure, field, f"{label} over the optimizer steps")


@_styled
def line_chart(name: str, xs: Sequence[float], lines: Sequence[ChartLine], x_label: str, y_label: str) -> Markup:
    """Several lines over the same x, each point with its 95 % interval. name: tells the chart from others of a page."""
    figure, axes = _empty(4.7, 3.0, grid="y")
    for line, marker in zip(lines, "oDs^", strict=False):
        colour, lows, highs = COLOURS[line.colour], [one.low for one in line.means], [one.high for one in line.means]
        values = [one.value for one in line.means]
        axes.plot(xs, values, color=colour, linewidth=1.4, marker=marker, markersize=4.5, label=line.label)
        axes.vlines(xs, lows, highs, color=colour, linewidth=1.2)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    tops = [top for line in lines for one in line.means for top in (one.value, one.high) if math.isfinite(top)]
    axes.set_ylim(0, 1.06 * max(tops, default=0.0) or 1.0)
    figure.legend(loc="outside upper center", ncols=min(2, len(lines)), frameon=False, handletextpad=0.4)
    return _svg(figure, name, f"{y_label} over {x_label}")


@_styled
def dots_chart(
    name: str, rows: Sequence[tuple[str, Interval, Sequence[float]]], x_label: str, reference: float
) -> Markup:
    """A row for each (label, mean, single values), fractions drawn in percent: the mean with its 95 % interval, the
    values as small dots. reference: where a dashed line crosses all rows."""
    figure, axes = _empty(6.4, 0.8 + 0.42 * len(rows), grid="x")
    axes.axvline(100 * reference, color=COLOURS["muted"], linewidth=0.9, linestyle="--")
    for height, (_, mean, values) in enumerate(rows):
        bounds = [100 * mean.low, 100 * mean.high]
        axes.plot(bounds, [height, height], color=COLOURS["after"], linewidth=2, solid_capstyle="butt")
        dots = [100 * value for value in values]
        axes.plot(dots, [height] * len(values), "o", color=COLOURS["before"], markersize=3.5)
        axes.plot([100 * mean.value], [height], "D", color=COLOURS["after"], markersize=6, zorder=3)
    _name_rows(axes, [label for label, _, _ in rows])
    axes.set_xlabel(x_label)
    return _svg(figure, name, x_label)


def smoothing_note(steps: int) -> str:
    """How a curve of so many steps is drawn, as a sentence of plain text."""
    if steps <= FEW:
        return "Every step has its own marker."
    if steps <= MANY:
        return f"The pale line is every step, the strong one the mean of {_window(steps)} neighbouring steps."
    each = -(-steps // BINS)
    return (
        f"The line shows means of up to {each} consecutive steps; "
        "the pale band spans the middle 80 % of the steps in each."
    )


def _draw(axes: Axes, steps: np.ndarray, values: np.ndarray) -> None:
    colour = COLOURS["after"]
    if len(steps) <= FEW:
        axes.plot(steps, values, color=colour, linewidth=1.4, marker="o", markersize=3.4)
        return
    centres, means = _strong(steps, values)
    if len(steps) <= MANY:
        axes.plot(steps, values, color=colour, linewidth=0.7, alpha=0.35)
        axes.plot(centres, means, color=colour, linewidth=1.8)
        return
    bins = _bins(values)
    lows, highs = (np.array([np.quantile(part, share) for part in bins if part.size]) for share in (0.1, 0.9))
    axes.fill_between(centres, lows, highs, color=colour, alpha=0.22, linewidth=0)
    axes.plot(centres, means, color=colour, linewidth=1.6)


def _strong(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The points of the strong line: every step, means of neighbours, or a mean for each of BINS."""
    if len(steps) <= FEW:
        return steps, values
    if len(steps) <= MANY:
        return steps, _moving_mean(values, _window(len(steps)))
    bins = _bins(values)
    full = np.array([part.size > 0 for part in bins])
    centres = np.array([part.mean() for part in np.array_split(steps, BINS)])
    return centres[full], np.array([part.mean() for part in bins if part.size])


def _bins(values: np.ndarray) -> list[np.ndarray]:
    """The finite values of each of BINS runs of steps."""
    return [part[np.isfinite(part)] for part in np.array_split(values, BINS)]


def _window(steps: int) -> int:
    return max(3, steps // 20) | 1


def _moving_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Centred mean over the finite values in the window, which is cut at both ends."""
    finite = np.isfinite(values)
    kernel = np.ones(window)
    counts = np.convolve(finite.astype(float), kernel, "same")
    totals = np.convolve(np.where(finite, values, 0.0), kernel, "same")
    return np.where(counts > 0, totals / np.maximum(counts, 1), np.nan)


class _MaskedSteps(NamedTuple):
    """Consecutive steps of one stage and mask ratio."""

    first: int
    last: int
    ratio: float


def _runs(metrics: Sequence[StepMetrics]) -> list[_MaskedSteps]:
    runs = []
    for (_, ratio), rows in groupby(metrics, key=lambda row: (row.stage, row.mask_ratio)):
        steps = [row.step for row in rows]
        runs.append(_MaskedSteps(steps[0], steps[-1], ratio))
    return runs


def _empty(width: float, height: float, grid: Literal["x", "y"]) -> tuple[Figure, Axes]:
    """Of so many inches, with a grid behind what is drawn."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.grid(axis=grid)
    axes.set_axisbelow(True)
    return figure, axes


def _name_rows(axes: Axes, labels: Sequence[str]) -> None:
    """A row for each label, from the top."""
    short = [" ".join(label.split()) for label in labels]
    short = [label if len(label) <= _LONGEST_NAME else label[: _LONGEST_NAME - 1] + "…" for label in short]
    axes.set_yticks(range(len(labels)), short, color=COLOURS["ink"])
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(labels) - 0.5, -0.5)


def _panel(metrics: Sequence[StepMetrics], label: str) -> tuple[Figure, Axes]:
    """An empty chart over the steps, with a band for each mask ratio (the darker, the more is masked)."""
    figure, axes = _empty(4.7, 2.25, grid="y")
    runs = _runs(metrics)
    start, end = metrics[0].step - 0.5, metrics[-1].step + 0.5
    largest = max(run.ratio for run in runs)
    above = blended_transform_factory(axes.transData, axes.transAxes)
    for run in runs if len(runs) <= _MOST_BANDS else ():
        left, right = run.first - 0.5, run.last + 0.5
        if run.ratio > 0:
            axes.axvspan(left, right, color=COLOURS["band"], alpha=0.06 + 0.2 * run.ratio / largest, linewidth=0)
        if (right - left) / (end - start) > 0.085:
            text = f"{100 * run.ratio:.3g} %"
            axes.text((left + right) / 2, 1.02, text, transform=above, ha="center", va="bottom", fontsize=7.5)
    axes.set_xlim(start, end)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel(label)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.4g}"))
    return figure, axes


def _svg(figure: Figure, name: str, description: str) -> Markup:
    """The figure as an ``<svg>`` element that can stand beside others in one page: ids are told apart by ``name``."""
    file = io.StringIO()
    nothing: dict[str, Any] = {"Date": None, "Creator": None, "Format": None, "Type": None}
    with warnings.catch_warnings():
        # a kind's name in a script that matplotlib's font lacks: the browser has one
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(file, format="svg", metadata=nothing, transparent=True)
    text = file.getvalue()
    size = re.search(r'viewBox="([^"]+)"', text)
    if size is None:
        raise ValueError("matplotlib wrote an SVG without a viewBox")
    body = text[text.index(">", size.end()) + 1 : text.rindex("</svg>")]
    body = re.sub(r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>|<!--.*?-->", "", body, flags=re.DOTALL)
    body = body.replace("xlink:href=", "href=")
    body = re.sub(r'\bid="', f'id="{name}-', body)
    body = re.sub(r'href="#', f'href="#{name}-', body)
    body = body.replace("url(#", f"url(#{name}-")
    for variable, placeholder in COLOURS.items():
        body = body.replace(placeholder, f"var(--{variable})")
    chart = Markup('<svg class="chart" viewBox="%s" role="img" aria-label="%s">%s</svg>')
    return chart % (size[1], description, Markup(body.strip()))
