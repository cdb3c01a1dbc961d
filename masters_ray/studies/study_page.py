"""study.html: what the variants of a study came to, for a reader who has seen neither code nor run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from masters_ray.files import write_text
from masters_ray.report.charts import dots_chart
from masters_ray.report.markup import decimal, escape, facts, nats, table
from masters_ray.report.page import document
from masters_ray.studies.statistics import Mean

if TYPE_CHECKING:
    from masters_ray.studies.study import Outcome, Study

LEARNING, WAITING = "learning, s", "waiting, s"


def write(file: Path, study: Study, found: Sequence[Outcome]) -> Path:
    """Write the page; an existing one is replaced in one step."""
    parts = (
        ("result", "What the variants came to", _result(study, found)),
        ("variants", "The variants", _variants(study, found)),
        ("study", "The study", _facts(study)),
    )
    write_text(file, document("Study", study.dir.name, parts))
    return file


def any_waited(found: Sequence[Outcome]) -> bool:
    """Whether a learner had to wait for fresh answers."""
    return any(one.waited.value > 0 for one in found)


def told_of_times(found: Sequence[Outcome]) -> str:
    """What the columns of seconds are, as plain text."""
    text = (
        f"“{LEARNING}” is the wall time in which the student learned, on average over the seeds: the learner’s start, "
        "its steps, handing over weights, and waiting for fresh answers. Making rows before is not in it, since "
        "variants share them. Other work on the machine lengthens it."
    )
    if not any_waited(found):
        return text
    return (
        f"{text} “{WAITING}” is the part of it in which the learner stood still because fresh answers were not there "
        "yet."
    )


def _result(study: Study, found: Sequence[Outcome]) -> str:
    rows = [(one.name, _points(one.accuracy), [100 * value for value in one.accuracies]) for one in found]
    [reference] = [one for one in found if one.name == study.reference]
    chart = dots_chart("accuracy", rows, "accuracy on held-out questions (%)", 100 * reference.accuracy.value)
    return (
        "<p>Every variant was run with the same seeds. Small dots are single runs, the diamond is their mean, and the "
        f"line its 95 % interval over the seeds; the dashed line is “{escape(study.reference)}”.</p>"
        f'<div class="wide">{chart}</div>{_differences(reference, [one for one in found if one is not reference])}'
    )


def _differences(reference: Outcome, others: Sequence[Outcome]) -> str:
    """What the intervals of the accuracies hide: the seeds' own spread, which a pair shares, is gone."""
    if not others:
        return ""
    several = len(reference.accuracies) > 1
    rows = [
        (
            one.name,
            _points(one.difference if several else one.difference_by_question),
            [100 * (own - other) for own, other in zip(one.accuracies, reference.accuracies, strict=True)],
        )
        for one in others
    ]
    chart = dots_chart("difference", rows, f"accuracy minus that of “{reference.name}” (points)", 0.0)
    over = "the seeds" if several else "the held-out questions, since there is one seed"
    return (
        "<p>The same by pairs: each run minus the one of “"
        f"{escape(reference.name)}” with the same seed, and their mean with its 95 % interval over {over}. An interval "
        "that reaches over the dashed line shows no difference.</p>"
        f'<div class="wide">{chart}</div>'
    )


def _variants(study: Study, found: Sequence[Outcome]) -> str:
    waited = any_waited(found)
    head = (
        "variant",
        "accuracy",
        "95 % over seeds",
        f"to {study.reference} (points)",
        "95 % over seeds",
        "95 % over questions",
        "JSD at the end",
        LEARNING,
        *([WAITING] if waited else []),
        "changes",
    )
    rows = []
    for one in found:
        same = one.name == study.reference
        changes = "<br>".join(
            f"<code>{escape(key)}={escape(json.dumps(value))}</code>" for key, value in one.changes.items()
        )
        rows.append(
            [
                escape(one.name),
                decimal(100 * one.accuracy.value, 1),
                _interval(one.accuracy),
                "" if same else decimal(100 * one.difference.value, 1, sign=True),
                "" if same else _interval(one.difference),
                "" if same else _interval(one.difference_by_question),
                nats(one.jsd.value),
                decimal(one.seconds.value, 1),
                *([decimal(one.waited.value, 1)] if waited else []),
                changes or '<span class="muted">nothing</span>',
            ]
        )
    return (
        "<p>Differences are paired. <b>Over seeds</b> treats each seed as one observation, which is what a repetition "
        "of the whole experiment would vary; <b>over questions</b> resamples the held-out questions with these seeds, "
        "and says what these questions can tell apart. An interval that holds 0 shows no difference.</p>"
        f"<p>{escape(told_of_times(found))}</p>"
        f"{table(head, rows, numbers=range(1, len(head) - 1))}"
    )


def _facts(study: Study) -> str:
    shared = ", ".join(
        f"<code>{escape(key)}={escape(json.dumps(value))}</code>" for key, value in study.changes.items()
    )
    return facts(
        [
            ("study", f"<code>{escape(study.file)}</code>"),
            ("base", f"<code>{escape(study.base)}</code>"),
            ("all runs change", shared or "nothing"),
            ("seeds", escape(", ".join(map(str, study.seeds)))),
            ("directory", f"<code>{escape(str(study.dir))}</code>"),
        ]
    )


def _points(mean: Mean) -> Mean:
    return Mean(value=100 * mean.value, low=100 * mean.low, high=100 * mean.high, n=mean.n)


def _interval(mean: Mean) -> str:
    return "–" if mean.n == 1 else f"{100 * mean.low:.1f} to {100 * mean.high:.1f}"
