"""Draws the charts as inline SVG that follows the page's light or dark colours: placeholders of ``COLOURS`` become the
style sheet's variables. Only ``matplotlib.figure.Figure`` is used, so that nothing depends on a display or pyplot."""

import io
import math
import re
import warnings
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, NamedTuple

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter
from matplotlib.transforms import blended_transform_factory

from masters_ray.evaluate import Interval
from masters_ray.records import StepMetrics
from masters_ray.report.instabilities import column, moving_mean, moving_median, spikes

_LIGHT, *_ = (Path(__file__).parent / "templates" / "style.css").read_text(encoding="utf-8").split("@media")
COLOURS = dict(re.findall(r"--(\w+): (#\w{6});", _LIGHT))
"""Variable of the style sheet → its colour on a light page (after Okabe and Ito), which stands for it while drawing."""
_styled = matplotlib.rc_context(
    {
        "svg.fonttype": "none",
        "svg.hashsalt": "masters_ray",
        "text.parse_math": False,
        "font.family": "DejaVu Sans",
        "font.size": 9,
        "axes.axisbelow": True,
        "axes.edgecolor": COLOURS["grid"],
        "axes.labelcolor": COLOURS["muted"],
        "axes.spines.right": False,
        "axes.spines.top": False,
        "grid.color": COLOURS["grid"],
        "grid.linewidth": 0.7,
        "text.color": COLOURS["ink"],
        "xtick.color": COLOURS["muted"],
        "ytick.color": COLOURS["muted"],
    }
)
FEW = 60  # up to this many steps each has a marker; with more, the strong line is a moving median
MANY = 600  # most points of a curve; with more steps, each point is the median of neighbouring steps


class Series(NamedTuple):
    label: str
    colour: str  # key of ``COLOURS``
    marker: str
    means: Sequence[Interval | None]  # for each row or x value of the chart; None: not measured

    @property
    def bounds(self) -> np.ndarray:
        """float [3, places]: value, low, high; NaN: not measured."""
        rows = [(math.nan,) * 3 if one is None else (one.value, one.low, one.high) for one in self.means]
        return np.array(rows, float).reshape(-1, 3).T


@_styled
def rows_chart(
    name: str,
    labels: Sequence[str],
    series: Sequence[Series],
    x_label: str,
    singles: Sequence[Sequence[float]] = (),
    reference: float | None = None,
    before: Sequence[float] = (),
) -> Markup:
    """Draws a row per label with the 95 % interval of every series, in percent. With several series the axis goes from
    0 to 100 %, and values are written beside the markers. name: unique on the page; singles: values of each row, drawn
    as small dots below; reference: x of a dashed line; before: a value of each row, drawn as an upright stroke."""
    if not labels:
        return Markup()
    several = len(series) > 1
    figure, axes = _empty(5.2, 0.75 + (0.6 if several else 0.42) * len(labels), grid="x")
    for place, one in enumerate(series):
        colour, (values, lows, highs) = COLOURS[one.colour], 100 * one.bounds
        heights = np.arange(len(labels)) + 0.25 * (place - (len(series) - 1) / 2)
        axes.hlines(heights, lows, highs, color=colour, linewidth=2.2)
        axes.plot(values, heights, one.marker, color=colour, markersize=6, clip_on=False, zorder=3, label=one.label)
        for value, high, height in zip(values, highs, heights, strict=True) if several else ():
            text = f"{value:.1f}" if math.isfinite(value) else "not measured"
            axes.text(np.nanmax([value, high, -0.2]) + 1.2, height, text, va="center", fontsize=8)
    for row, single in enumerate(singles):
        axes.plot(100 * np.array(single), [row + 0.2] * len(single), "o", color=COLOURS["after"], markersize=3.5)
    axes.plot(
        100 * np.array(before), range(len(before)), "|", color=COLOURS["before"], markersize=15, markeredgewidth=2.4
    )
    if reference is not None:
        axes.axvline(100 * reference, color=COLOURS["muted"], linewidth=0.9, linestyle="--")
    if several:
        for row in range(1, len(labels)):
            axes.axhline(row - 0.5, color=COLOURS["grid"], linewidth=0.7)
        axes.set_xlim(0, 108)
        axes.set_xticks(range(0, 101, 20))
        figure.legend(loc="outside upper center", ncols=3, frameon=False, handletextpad=0.3)
    names = [" ".join(label.split()) for label in labels]
    names = [name if len(name) <= 30 else f"{name[:29]}…" for name in names]
    axes.set_yticks(range(len(labels)), names, color=COLOURS["ink"])
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.set_xlabel(x_label)
    return _svg(figure, name, x_label)


@_styled
def line_chart(
    name: str, xs: Sequence[float], series: Sequence[Series], x_label: str, y_label: str, scale: float = 1.0
) -> Markup:
    """Draws each series that has a value: points with their intervals, and a line if it is the only one, since lines of
    several hide each other; points of the same x stand side by side.
    A dashed line marks 0 if an interval reaches below it; if all lie far above, the axis starts below the lowest. name:
    unique on the page; scale: factor of all values."""
    drawn = [one for one in series if any(one.means)]
    if not drawn:
        return Markup()
    figure, axes = _empty(4.7, 3.0, grid="y")
    bounds = scale * np.array([one.bounds for one in drawn])
    for place, (one, (values, lows, highs)) in enumerate(zip(drawn, bounds, strict=True)):
        beside = np.array(xs) + 0.015 * (np.ptp(xs) or 1.0) * (place - (len(drawn) - 1) / 2)
        colour = COLOURS[one.colour]
        line = "-" if len(drawn) == 1 else "none"
        axes.plot(
            beside,
            values,
            linestyle=line,
            color=colour,
            linewidth=0.8,
            marker=one.marker,
            markersize=4.5,
            label=one.label,
        )
        axes.vlines(beside, lows, highs, color=colour, linewidth=1.2)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=all(float(x).is_integer() for x in xs)))
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    if np.nanmin(bounds) < 0:
        axes.axhline(0, color=COLOURS["muted"], linewidth=0.9, linestyle="--")
    else:
        low, high = np.nanmin(bounds), np.nanmax(bounds) or 1.0
        axes.set_ylim(0 if low < high / 2 else low - 0.06 * (high - low or low), high + 0.06 * (high - low or high))
    if len(drawn) > 1:
        figure.legend(loc="outside upper center", ncols=min(2, len(drawn)), frameon=False, handletextpad=0.4)
    return _svg(figure, name, f"{y_label} over {x_label}")


@_styled
def mask_chart(metrics: Sequence[StepMetrics]) -> Markup:
    stages = _stages(metrics)
    figure, axes = _over_steps(metrics, "mask ratio (%)")
    ratios = [100 * ratio for _, _, ratio in stages]
    edges = [stages[0][0], *(end for _, end, _ in stages)]
    axes.stairs(ratios, edges, color=COLOURS["band"], linewidth=2, baseline=None)
    axes.set_ylim(0, max(5.0, 1.15 * max(ratios)))
    return _svg(figure, "mask", "Mask ratio over the optimizer steps")


@_styled
def curve_chart(
    metrics: Sequence[StepMetrics],
    field: str,
    label: str,
    limits: tuple[float, float] | None = None,
    error: str | None = None,
    points: int = MANY,
    smooth: Literal["median", "mean", "none"] = "median",
    threshold: float | None = None,
) -> Markup:
    """Draws a field of the metrics over the optimizer steps. The axis leaves out the values of ``beyond``, which are
    triangles at its edge. limits: range that the y axis spans at least; error: field with the most by which the true
    value may be higher, drawn as a dashed line where it can be seen; points: most points of a line; smooth: what the
    strong line of many steps shows, none: the values; threshold: height of a dashed line."""
    values, far = column(metrics, field), _far(metrics, field)
    seen = values[np.isfinite(values) & ~far]
    steep = seen.size > 2 and seen.min() > 0 and seen.max() > 50 * np.median(seen)
    figure, axes = _over_steps(metrics, f"{label} (log)" if steep else label)
    colour, steps = COLOURS["after"], _thinned(column(metrics, "step"), points)
    drawn = _thinned(values, points, np.mean if smooth == "mean" else np.median)
    if threshold is not None:
        axes.axhline(threshold, color=COLOURS["muted"], linewidth=1.1, linestyle="--")
        seen = np.append(seen, threshold)
    if error is not None and visible(metrics, field, error):
        most = moving_median(_thinned(values + column(metrics, error), points))
        axes.plot(steps, most, color=COLOURS["muted"], linewidth=1.1, linestyle="--")
        seen = np.append(seen, most[np.isfinite(most)])
    if len(steps) <= FEW:
        axes.plot(steps, drawn, color=colour, linewidth=1.4, marker="o", markersize=3.4)
    else:
        axes.plot(steps, drawn, color=colour, linewidth=0.7, alpha=0.6)
        strong = drawn if smooth == "none" else moving_mean(drawn) if smooth == "mean" else moving_median(drawn)
        axes.plot(steps, strong, color=colour, linewidth=1.8)
    if smooth == "none":
        axes.set_yticks([0.0, *values[-1:]])  # the last value is told exactly
    low, high = (min([*seen, *(limits or ())], default=0.0), max([*seen, *(limits or ())], default=1.0))
    if steep:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        low, high = seen.min() / 1.2, seen.max() * 1.2
    else:
        margin = 0.04 * (high - low) or 0.1 * abs(high) or 1.0
        low, high = low - margin, high + margin
    axes.set_ylim(low, high)
    for row, value in beyond(metrics, field):
        edge, marker = (high, "^") if value > 0 else (low, "v")
        axes.plot([row], [edge], marker, color=COLOURS["before"], markersize=6, clip_on=False, zorder=4)
    return _svg(figure, field, f"{label} over the optimizer steps")


def beyond(metrics: Sequence[StepMetrics], field: str) -> list[tuple[int, float]]:
    """Returns (step, value) of the values that would flatten a field's curve, so that its axis leaves them out; the
    largest first."""
    found = [(row.step, getattr(row, field)) for row, far in zip(metrics, _far(metrics, field), strict=True) if far]
    return sorted(found, key=lambda one: -abs(one[1]))


def _far(metrics: Sequence[StepMetrics], field: str) -> np.ndarray:
    """bool [steps]: spikes that are further out than all other values."""
    values = column(metrics, field)
    found, size = spikes(values), np.abs(values)
    return found & (size > 1.1 * size[np.isfinite(values) & ~found].max(initial=0.0))


def visible(metrics: Sequence[StepMetrics], field: str, error: str) -> bool:
    """Returns whether a chart of the field can show its error: it reaches 3 % of the field's largest value."""
    values, errors = column(metrics, field), column(metrics, error)
    sizes = values[np.isfinite(values) & ~_far(metrics, field)]
    return bool(np.nanmax(errors, initial=0.0) > 0.03 * np.abs(sizes).max(initial=0.0))


def _thinned(values: np.ndarray, most: int, middle: Callable[[np.ndarray], Any] = np.median) -> np.ndarray:
    """Returns at most ``most`` medians of neighbouring values, or what else ``middle`` is; NaN where none is finite."""
    parts = (part[np.isfinite(part)] for part in np.array_split(values, min(len(values), most)))
    return np.array([middle(part) if part.size else math.nan for part in parts])


def _stages(metrics: Sequence[StepMetrics]) -> list[tuple[float, float, float]]:
    """Returns (start, end, mask ratio) of each run of steps of a stage; bounds are half steps outside."""
    runs = [list(rows) for _, rows in groupby(metrics, key=lambda row: (row.stage, row.mask_ratio))]
    return [(rows[0].step - 0.5, rows[-1].step + 0.5, rows[0].mask_ratio) for rows in runs]


def _empty(width: float, height: float, grid: Literal["x", "y"]) -> tuple[Figure, Axes]:
    """width, height: in inches; grid: axis whose values have lines."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.grid(axis=grid)
    return figure, axes


def _over_steps(metrics: Sequence[StepMetrics], label: str) -> tuple[Figure, Axes]:
    """Returns an empty chart over the steps with a band for each stage's mask ratio: darker for higher ratios."""
    figure, axes = _empty(4.7, 2.25, grid="y")
    stages = _stages(metrics)
    start, end, largest = stages[0][0], stages[-1][1], max(ratio for _, _, ratio in stages)
    above = blended_transform_factory(axes.transData, axes.transAxes)
    for left, right, ratio in stages:
        if ratio > 0:
            axes.axvspan(left, right, color=COLOURS["band"], alpha=0.06 + 0.2 * ratio / largest, linewidth=0)
        if (right - left) / (end - start) > 0.085:
            text = f"{100 * ratio:.3g} %"
            axes.text((left + right) / 2, 1.05, text, transform=above, ha="center", va="bottom", fontsize=7.5)
    axes.set_xlim(start, end)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel(label)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.4g}"))
    return figure, axes


def _svg(figure: Figure, name: str, description: str) -> Markup:
    """Returns the figure as an ``<svg>`` element; prefixes its ids with ``name``, so that a page can hold several."""
    file = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with warnings.catch_warnings():
        # A kind's name may be in a script that matplotlib's font lacks; the browser has a font for it.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(file, format="svg", metadata=nothing, transparent=True)
    [(size, body)] = re.findall(r'viewBox="([^"]+)"[^>]*>(.*)</svg>', file.getvalue(), re.DOTALL)
    body = re.sub(
        r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>|<!--.*?-->|\bxlink:(?=href)", "", body, flags=re.DOTALL
    )
    body = re.sub(r'(\bid="|href="#|url\(#)', rf"\1{name}-", body)
    for variable, placeholder in COLOURS.items():
        body = body.replace(placeholder, f"var(--{variable})")
    chart = Markup('<svg class="chart" viewBox="%s" role="img" aria-label="%s">%s</svg>')
    return chart % (size, description, Markup(body.strip()))
