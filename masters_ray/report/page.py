"""The values of ``templates/report.html.jinja`` that are more than a field of the summary."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import PurePath
from typing import Any

from markupsafe import Markup, escape

from masters_ray import remarks
from masters_ray.evaluate import Accuracy, Interval
from masters_ray.records import StageOutcome, StepMetrics
from masters_ray.report.charts import accuracy_chart, curve_chart, mask_chart, smoothing_note
from masters_ray.report.inputs import Example
from masters_ray.report.numbers import interval, percent, whole
from masters_ray.report.render import render
from masters_ray.report.summary import Accuracies, Summary

_MOST_KINDS = 50
"""Kinds whose accuracies are shown, those with the most questions first."""
_MUCH_LEFT_OUT = 0.05
"""From this mean left-out mass on the reader is warned that the JSD is a loose bound."""


def run_page(summary: Summary, metrics: Sequence[StepMetrics], examples: Sequence[Example]) -> str:
    """The whole report as one HTML document."""
    told = re.sub(
        r"[\d.]+ % \([^)]*\)", r'<span class="together">\g<0></span>', str(escape(headline(summary.accuracy)))
    )
    return render(
        __package__,
        "report.html.jinja",
        name=PurePath(summary.run.dir).name or summary.run.dir,
        summary=summary,
        headline=Markup(told),
        verdict=verdict(summary.accuracy),
        examples=examples,
        **_accuracy(summary),
        **_stages(summary),
        metrics=metrics,
        smoothing=smoothing_note(len(metrics)),
        mask_chart=mask_chart,
        curve=partial(curve_chart, metrics),
        kappa=remarks.kappa,
        phases=_phases(summary),
    )


def headline(found: Accuracies) -> str:
    """The result in one sentence of plain text.

    Example: ``The student went from 61.2 % (57–65) to 83.0 % (80–86) on 720 held-out questions; its teacher has
    96.9 %.``
    """
    before, after = found.student_before, found.student_after
    digits = 1 if _apart(before, after) and interval(before)[-2:] == interval(after)[:2] else 0
    questions = f"{whole(after.n)} held-out question{'s' if after.n != 1 else ''}"
    if before.n != after.n:
        questions += f" ({whole(before.n)} before)"
    return (
        f"The student went from {percent(before.value)} ({interval(before, digits)}) "
        f"to {percent(after.value)} ({interval(after, digits)}) on {questions}; "
        f"its teacher has {percent(found.teacher.value)}."
    )


def verdict(found: Accuracies) -> str:
    """Whether the 95 % intervals before and after are apart, and how much of the way to the teacher is made: plain."""
    before, after, teacher = found.student_before, found.student_after, found.teacher
    change = after.value - before.value
    if not math.isfinite(change):
        return "One of the two accuracies was not measured, so there is nothing to compare."
    points = f"{100 * abs(change):.1f} points"
    if not _apart(before, after):
        direction = "gain" if change > 0 else "loss" if change < 0 else "difference"
        return (
            f"The two 95 % intervals overlap: on so many questions a {direction} of {points} may still be chance, "
            "though it need not be."
        )
    direction = "gain" if change > 0 else "loss"
    told = f"The two 95 % intervals are apart: a {direction} of {points}, more than the choice of questions explains."
    if change < 0:
        return told
    if after.value >= teacher.value:
        return f"{told} The student is now level with its teacher or above it."
    return f"{told} That is {percent(change / (teacher.value - before.value), 0)} of the way to its teacher."


def _accuracy(summary: Summary) -> dict[str, Any]:
    """The accuracies with the kinds that are shown, their chart, and what is to be said of cut answers."""
    found, evaluation = summary.accuracy, summary.evaluation
    asked = Counter({kind: rate.n for kind, rate in found.student_after.by_kind.items()})
    kinds = {kind for kind, _ in asked.most_common(_MOST_KINDS)}

    def of(one: Accuracy) -> Accuracy:
        return replace(one, by_kind={kind: rate for kind, rate in one.by_kind.items() if kind in kinds})

    before, after, teacher = of(found.student_before), of(found.student_after), of(found.teacher)
    return {
        "before": before,
        "after": after,
        "teacher": teacher,
        "hidden": len(asked) - len(kinds),
        "held_out_cut": remarks.held_out_cut(max(evaluation.cut.values(), default=0.0), evaluation.max_tokens),
        "accuracy_chart": accuracy_chart(before, after, teacher),
    }


def _stages(summary: Summary) -> dict[str, Any]:
    """What is to be said of the stages, and the sums that a template cannot make."""
    most = max((stage.tail_mass for stage in summary.stages), default=0.0)

    def about(stage: StageOutcome) -> str:
        return f"stage {stage.stage}"

    return {
        "all_set_aside": sum(sum(stage.set_aside.values()) for stage in summary.stages),
        "much_left_out": most if most > _MUCH_LEFT_OUT else 0.0,
        "stage_remarks": [tell(about(one), one) for one in summary.stages for tell in (remarks.cut, remarks.defused)],
        "judge_remarks": [remarks.disagreement(about(one), one, summary.judge.rule) for one in summary.stages],
    }


def _phases(summary: Summary) -> dict[str, float]:
    """Phase → seconds, with what no phase accounts for where it is more than 0.5 % of the wall time."""
    phases = {name: seconds for name, seconds in summary.phases.items() if math.isfinite(seconds)}
    rest = summary.wall_seconds - sum(phases.values())
    if math.isfinite(rest) and rest > 0.005 * summary.wall_seconds:
        phases["everything else"] = rest
    return phases


def _apart(one: Interval, other: Interval) -> bool:
    return one.high < other.low or other.high < one.low
