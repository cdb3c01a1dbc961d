"""mask_scan.html: what a scan of mask ratios found, for a reader who has seen neither code nor run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from masters_ray.config import Config, as_written
from masters_ray.files import write_text
from masters_ray.report.charts import Line, line_chart
from masters_ray.report.markup import NOTHING, escape, facts, nats, percent, small_percent, table
from masters_ray.report.page import document
from masters_ray.studies.statistics import Mean

if TYPE_CHECKING:
    from masters_ray.studies.mask_scan import Advice, Scanned


def write(file: Path, config: Config, found: Sequence[Scanned], advice: Advice) -> Path:
    """Write the page; an existing one is replaced in one step."""
    parts = (
        ("result", "Where should the mask start?", _result(found, advice)),
        ("ratios", "Ratio by ratio", _ratios(found)),
        ("rewards", "What the masked teacher answers", _rewards(found)),
        ("scan", "The scan", _facts(config)),
    )
    write_text(file, document("Scan of mask ratios", Path(config.run.dir).parent.name, parts))
    return file


def _result(found: Sequence[Scanned], advice: Advice) -> str:
    ratios = [100 * one.ratio for one in found]
    lines = [Line(label="all answers", colour="after", means=[one.jsd for one in found])]
    for source, colour in (("teacher", "teacher"), ("student", "before")):
        if all(source in one.jsd_by_source for one in found):
            means = [one.jsd_by_source[source] for one in found]
            lines.append(Line(label=f"the {source}’s answers", colour=colour, means=means))
    chart = line_chart("jsd", ratios, lines, "mask ratio (%)", "JSD to the student (nats)")
    right = [one.teacher_right for one in found if one.teacher_right is not None]
    reasoning = [one.teacher_reasoning for one in found if one.teacher_reasoning is not None]
    rewards = [
        Line(label=label, colour=colour, means=means)
        for label, colour, means in (
            ("right answers (R_acc)", "teacher", right),
            ("supporting reasoning (R_rea)", "band", reasoning),
        )
        if len(means) == len(found)
    ]
    quality = ""
    if rewards:
        svg = line_chart("quality", ratios, rewards, "mask ratio (%)", "share of the teacher’s answers")
        told = "What the mask costs the teacher itself, with 95 % intervals."
        quality = f"<figure>{svg}<figcaption>{told}</figcaption></figure>"
    return (
        f'<p class="headline">{escape(advice.text)}</p>'
        "<p>The smallest weights of the teacher are set to zero, a share of every matrix: the <b>mask ratio</b>. The "
        "<b>JSD</b> (Jensen–Shannon divergence, 0 to 0.69 nats) says how far its next-token distributions are from the "
        "student’s on the same answers. A run starts with the mask that makes teacher and student most alike and takes "
        "it off step by step; a mask beyond that point only damages the teacher.</p>"
        f'<div class="curves"><figure>{chart}<figcaption>Mean over the questions with 95 % intervals.</figcaption>'
        f"</figure>{quality}</div>"
    )


def _ratios(found: Sequence[Scanned]) -> str:
    kinds = sorted({kind for one in found for kind in one.jsd_by_kind})
    head = (
        "mask ratio",
        "sparsity",
        "JSD",
        "95 %",
        "more than the best",
        "95 %",
        "left-out mass",
        *kinds,
    )
    rows = [
        [
            percent(one.ratio),
            percent(one.sparsity, 3),
            nats(one.jsd.value),
            _interval(one.jsd),
            nats(one.against_best.value),
            _interval(one.against_best),
            small_percent(one.left_out),
            *(nats(one.jsd_by_kind[kind].value) if kind in one.jsd_by_kind else "–" for kind in kinds),
        ]
        for one in found
    ]
    return (
        "<p><b>More than the best</b> compares question by question with the ratio of the lowest JSD; where its "
        "interval holds 0 the two cannot be told apart. The last columns are the JSD by kind of question. "
        "<b>Left-out mass</b> is what the stored top-k scores do not hold: the JSD does not see it.</p>"
        f"{table(head, rows, numbers=range(len(head)))}"
    )


def _rewards(found: Sequence[Scanned]) -> str:
    if all(one.teacher_right is None for one in found):
        return "<p>The teacher wrote no answers (<code>rollout.teacher_answers</code>).</p>"
    kinds = sorted({kind for one in found for kind in one.teacher_right_by_kind})
    asked = any(one.teacher_reasoning is not None for one in found)
    head = ("mask ratio", "cut", "right (R_acc)", *(["reasoning (R_rea)"] if asked else []), *kinds)
    rows = [
        [
            percent(one.ratio),
            NOTHING if one.teacher_cut is None else percent(one.teacher_cut),
            _shares(one.teacher_right),
            *([_shares(one.teacher_reasoning)] if asked else []),
            *(_shares(one.teacher_right_by_kind.get(kind)) for kind in kinds),
        ]
        for one in found
    ]
    reasoning = " <b>R_rea</b> is the share whose reasoning supports the answer." if asked else ""
    return (
        f"<p><b>R_acc</b> is the share of the masked teacher’s answers that are right.{reasoning} <b>Cut</b> is the "
        "share that ended at the most tokens (<code>rollout.sampling.max_tokens</code>). The last columns are R_acc by "
        "kind of question. In parentheses: 95 % intervals, which resample whole questions.</p>"
        f"{table(head, rows, numbers=range(len(head)))}"
    )


def _facts(config: Config) -> str:
    return facts(
        [
            ("teacher", f"<code>{escape(as_written(config.teacher.checkpoint))}</code>"),
            ("student", f"<code>{escape(as_written(config.student.checkpoint))}</code>"),
            ("questions", str(config.data.train.rows)),
            ("answers per question", f"{config.rollout.teacher_answers} + {config.rollout.student_answers}"),
            ("top k", str(config.teacher.top_k)),
            ("seed", str(config.run.seed)),
        ]
    )


def _shares(mean: Mean | None) -> str:
    if mean is None:
        return NOTHING
    return f"{percent(mean.value)} ({100 * mean.low:.1f}–{100 * mean.high:.1f})"


def _interval(mean: Mean) -> str:
    return f"{nats(mean.low)} to {nats(mean.high)}"
