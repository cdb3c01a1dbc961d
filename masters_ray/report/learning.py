"""How the student learned: the section of curves over the optimizer steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from masters_ray.records import StepMetrics
from masters_ray.report.charts import curve_chart, mask_chart, smoothing_note
from masters_ray.report.markup import duration, escape, percent, whole


@dataclass(frozen=True, kw_only=True)
class _Curve:
    """A field of StepMetrics as the report draws it."""

    field: str
    title: str
    axis: str
    meaning: str
    limits: tuple[float, float] | None = None
    error: str | None = None
    """The field that says how far above it the true value may be."""
    error_meaning: str = ""
    """What follows the meaning where that is more than nothing."""


_CURVES = (
    _Curve(
        field="loss",
        title="Loss",
        axis="loss",
        meaning="What is minimised: policy loss + β · KL to the reference + JSD, with the configured weights.",
    ),
    _Curve(
        field="jsd",
        title="Distance to the teacher",
        axis="JSD (nats)",
        meaning="JSD between the masked teacher’s and the student’s next-token distributions on the group’s answers; "
        "falling means imitation works. It may step where the mask ratio, and so the teacher, changes.",
        limits=(0.0, 0.0),
        error="jsd_error_bound",
        error_meaning="Of the teacher’s distributions only the likeliest tokens are stored: over the whole vocabulary "
        "the distance is between the line and the dashed one.",
    ),
    _Curve(
        field="kl",
        title="Distance from the start",
        axis="KL (nats)",
        meaning="KL of the student to the reference, which is the student before training: how far it has moved.",
        limits=(0.0, 0.0),
    ),
    _Curve(
        field="policy_loss",
        title="Policy loss",
        axis="policy loss",
        meaning="The reinforcement term. The advantages of a group sum to zero, so with one update per batch its value "
        "stays at 0 (but for fresh answers of an older student); what teaches is its gradient.",
        limits=(-0.1, 0.1),
    ),
    _Curve(
        field="accuracy_reward",
        title="Accuracy reward",
        axis="mean R_acc",
        meaning="Share of the step’s answers, the teacher’s and the student’s, that the judge called right. In offline "
        "training the answers were written beforehand: it tells what was learned from, not how well it was learned.",
        limits=(0.0, 1.0),
    ),
    _Curve(
        field="distillation_reward",
        title="Distillation reward",
        axis="mean R_distill",
        meaning="Mean of R_distill, which is scaled within each group: high when most answers of a group are about "
        "as close as the closest one. It is not expected to rise.",
        limits=(0.0, 1.0),
    ),
    _Curve(
        field="gradient_norm",
        title="Gradient norm",
        axis="norm before clipping",
        meaning="Size of the update’s direction before clipping; spikes point at unstable steps.",
        limits=(0.0, 0.0),
    ),
    _Curve(
        field="tokens_per_second",
        title="Speed",
        axis="tokens per second",
        meaning="Tokens of prompts (once for each group) and answers, over all workers and the whole step.",
        limits=(0.0, 0.0),
    ),
    _Curve(
        field="flop_utilisation",
        title="Use of the device",
        axis="fraction of matmul rate",
        meaning="Operations that the step cannot do without, per second and worker, as a fraction of what the device "
        "reached on one large matrix product before training. A small model on short questions stays far below 1.",
        limits=(0.0, 1.0),
    ),
    _Curve(
        field="memory_gib",
        title="Memory",
        axis="GiB",
        meaning="The most that any worker has held so far: PyTorch’s memory on a GPU, the process’s on a CPU.",
        limits=(0.0, 0.0),
    ),
)

_CLIPPED = _Curve(
    field="clipped",
    title="Clipped tokens",
    axis="fraction of tokens",
    meaning="Share of the answer tokens whose probability had already moved so far from the step’s first update, or "
    "from the student that wrote a fresh answer, that the last update left them alone (learner.updates_per_step, "
    "learner.clip_epsilon).",
    limits=(0.0, 0.0),
)
"""Drawn only where a step has several updates, or older students' answers."""

_ONLINE = (
    _Curve(
        field="age",
        title="Age of fresh answers",
        axis="optimizer steps",
        meaning="By how many optimizer steps the student that wrote an iteration’s fresh answers was behind the one "
        "that learned from them, at most rollout.max_staleness; 0 where no answer was fresh.",
        limits=(0.0, 0.0),
    ),
    _Curve(
        field="behaviour_gap",
        title="Distance to the writing student",
        axis="nats per token",
        meaning="Mean difference of the log-probabilities that learner and writing student give to fresh answers. With "
        "an age of 0 it is rounding; otherwise it is how far the student has moved since.",
        limits=(0.0, 0.0),
    ),
    _Curve(
        field="waited",
        title="Waiting for fresh answers",
        axis="seconds",
        meaning="How long the learner stood still because an iteration’s fresh answers were not there yet.",
        limits=(0.0, 0.0),
    ),
)
"""Drawn only where iterations were online."""


def learning(metrics: Sequence[StepMetrics]) -> str:
    """The learner's curves over the optimizer steps."""
    if not metrics:
        return "<p>No optimizer step was recorded.</p>"
    figures = [_figure("Mask ratio", mask_chart(metrics), "Share of the teacher’s weights that are zero at each step.")]
    figures += [
        _curve(metrics, curve)
        for curve in (
            *_CURVES,
            *([_CLIPPED] if any(row.clipped > 0 for row in metrics) else []),
            *(_ONLINE if any(row.fresh for row in metrics) else []),
        )
    ]
    return (
        "<p>All answers to one question form a group, and each is rewarded with R = R_acc + α · R_distill (and "
        "ρ · R_rea if conf asks after the reasoning). "
        "<b>R_acc</b> is 1 if the judge calls the answer right, else 0. <b>R_distill</b> is 1 for the answer of the "
        "group on which teacher and student agree best and 0 for the worst. The <b>advantage</b> is R minus the "
        "group’s mean, divided by the group’s standard deviation: answers above 0 become more likely, those below 0 "
        "less.</p>"
        "<p><b>JSD</b> (Jensen–Shannon divergence) tells how far two next-token distributions are apart: 0 if they "
        "are the same, ln 2 ≈ 0.693 nats at most. Violet bands mark the stages: the darker, the more of the teacher is "
        f"masked; the figures above the bands are the mask ratios. {escape(smoothing_note(len(metrics)))}</p>"
        f"{_told_online(metrics)}"
        f'<div class="curves">{"".join(figures)}</div>'
    )


def _told_online(metrics: Sequence[StepMetrics]) -> str:
    """What came of online iterations, if there were any."""
    online = [row for row in metrics if row.fresh]
    if not online:
        return ""
    groups = sum(row.fresh for row in online)
    age = sum(row.age * row.fresh for row in online) / groups
    waited = sum(row.waited for row in metrics)
    return (
        f"<p><b>Online:</b> in {whole(len(online))} of {whole(len(metrics))} optimizer steps "
        f"({percent(len(online) / len(metrics))}) the student of the time and its teacher answered anew, "
        f"{whole(groups)} groups in all. The student that wrote them was {age:.1f} steps behind the one that learned "
        f"from them on average, {max(row.age for row in online):g} at most. The learner waited {duration(waited)} for "
        "them.</p>"
    )


def _curve(metrics: Sequence[StepMetrics], curve: _Curve) -> str:
    error = curve.error
    if error is None or not any(getattr(row, error) > 0 for row in metrics):
        return _figure(curve.title, curve_chart(metrics, curve.field, curve.axis, curve.limits), curve.meaning)
    chart = curve_chart(metrics, curve.field, curve.axis, curve.limits, error)
    return _figure(curve.title, chart, f"{curve.meaning} {curve.error_meaning}")


def _figure(title: str, chart: str, meaning: str) -> str:
    return f"<figure><h3>{escape(title)}</h3>{chart}<figcaption>{escape(meaning)}</figcaption></figure>"
