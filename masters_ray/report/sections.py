"""The sections of the report, top to bottom. Each is HTML that says in plain words what is to be seen."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from masters_ray import remarks
from masters_ray.evaluate import Accuracy
from masters_ray.records import LogprobMismatch, StageOutcome
from masters_ray.report.charts import accuracy_chart
from masters_ray.report.inputs import Split, Summary
from masters_ray.report.markup import (
    NOTHING,
    bar,
    decimal,
    duration,
    escape,
    facts,
    interval,
    parameters,
    percent,
    small_percent,
    table,
    whole,
)

_DIGEST = 12
"""Characters of a digest that are shown."""
_MOST_KINDS = 50
"""Kinds whose accuracies are shown, those with the most questions first."""
_MUCH_LEFT_OUT = 0.05
"""From this mean left-out mass on the reader is warned that the JSD is a loose bound."""


_RIGHT = {"rule": "the rule says so (see below)", "judge": "the judge says so"}
_JUDGES = {
    "student": "a judge, the student model as it was at the start, which reads question, label and answer but sees no "
    "picture",
    "teacher": "a judge, the teacher model without a mask, which reads question, label and answer but sees no picture",
    "rule": "the rule",
}
_RULES = {
    "exact": "The rule compares the answer’s words with the label.",
    "relaxed": "The rule compares the answer’s words with the label; numbers may be off by 5 %.",
    "choice": "The rule looks for the letter or the text of the right choice.",
    "vqa": "The rule compares the answer with the label as VQA benchmarks do: “two” is “2”.",
}


def headline(summary: Summary) -> str:
    """The result in one sentence of plain text.

    Example: ``The student went from 61.2 % (57–65) to 83.0 % (80–86) on 720 held-out questions; its teacher has
    96.9 %.``
    """
    before, after = summary.before, summary.after
    digits = 1 if _apart(before, after) and interval(before)[-2:] == interval(after)[:2] else 0
    questions = f"{whole(after.n)} held-out question{'s' if after.n != 1 else ''}"
    if before.n != after.n:
        questions += f" ({whole(before.n)} before)"
    return (
        f"The student went from {percent(before.value)} ({interval(before, digits)}) "
        f"to {percent(after.value)} ({interval(after, digits)}) on {questions}; "
        f"its teacher has {percent(summary.teacher.value)}."
    )


def verdict(summary: Summary) -> str:
    """Whether the 95 % intervals before and after are apart, and how much of the way to the teacher is made: plain."""
    before, after, teacher = summary.before, summary.after, summary.teacher
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
    if change < 0:
        return f"The two 95 % intervals are apart: a loss of {points}, more than the choice of questions explains."
    told = f"The two 95 % intervals are apart: a gain of {points}, more than the choice of questions explains."
    if after.value >= teacher.value:
        return f"{told} The student is now level with its teacher or above it."
    return f"{told} That is {percent(change / (teacher.value - before.value), 0)} of the way to its teacher."


def result(summary: Summary) -> str:
    """Headline, verdict, and the three accuracies as tiles."""
    tiles = "".join(
        f'<div class="tile {role}"><span class="muted">{name}</span><strong>{percent(outcome.value)}</strong>'
        f'<span class="muted">95 % interval {interval(outcome, 1)}</span></div>'
        for role, name, outcome in (
            ("before", "student before", summary.before),
            ("after", "student after", summary.after),
            ("teacher", "teacher", summary.teacher),
        )
    )
    warning = (
        '<p class="warning">The teacher is no better than the student was before training: there was little to learn '
        "from it.</p>"
        if summary.teacher.value <= summary.before.value
        else ""
    )
    warning += "".join(map(_warning, summary.doubts))
    told = re.sub(r"[\d.]+ % \([^)]*\)", r'<span class="together">\g<0></span>', escape(headline(summary)))
    return (
        f'<p class="headline">{told}</p><p>{escape(verdict(summary))}</p>{warning}'
        f'<div class="tiles">{tiles}</div>'
        '<p class="muted">A large vision-language model (the teacher) was distilled into a small one (the student) by '
        "the Masters method: the teacher is first simplified by zeroing its smallest weights and then restored stage "
        "by stage. At every stage both models answer questions, a judge marks the answers, and the student learns from "
        "both kinds of answers by reinforcement and by imitation.</p>"
    )


def accuracy(summary: Summary) -> str:
    """The accuracy chart and its table."""
    kinds = Counter({kind: rate.n for kind, rate in summary.after.by_kind.items()}).most_common(_MOST_KINDS)
    before, after, teacher = (
        replace(one, by_kind={kind: one.by_kind[kind] for kind, _ in kinds if kind in one.by_kind})
        for one in (summary.before, summary.after, summary.teacher)
    )

    def row(name: str, outcomes: Sequence[Accuracy], kind: str | None) -> list[str]:
        cells, values = [name], []
        for outcome in outcomes:
            rate = outcome if kind is None else outcome.by_kind.get(kind)
            values.append(rate.value if rate else math.nan)
            shown = f'{percent(rate.value)} <span class="muted">({interval(rate, 1)})</span>' if rate else NOTHING
            cells.append(shown)
        change = 100 * (values[1] - values[0])
        rate = after if kind is None else after.by_kind.get(kind)
        return [
            *cells,
            f"{change:+.1f}" if math.isfinite(change) else NOTHING,
            whole(rate.n) if rate else NOTHING,
        ]

    outcomes = (before, after, teacher)
    rows = [row(escape(kind), outcomes, kind) for kind in sorted(after.by_kind)]
    total = row("all kinds (mean)", outcomes, None)
    hidden = len(summary.after.by_kind) - len(kinds)
    head = ("kind", "student before", "student after", "teacher", "change (points)", "questions")
    right = _RIGHT.get(summary.marked_by, escape(summary.marked_by))
    left_out = (
        f'<p class="warning">{whole(summary.left_out)} held-out questions that one of the models could not be asked '
        "count in none of these accuracies; quarantine.jsonl has the reasons.</p>"
        if summary.left_out
        else ""
    )
    if summary.same_question:
        left_out += (
            f'<p class="warning">{whole(summary.same_question)} held-out questions are training questions too, with '
            "the same pictures: on them accuracy says what the student remembers, not what it has learned.</p>"
        )
    cut = ", ".join(f"{name.replace('_', ' ')} {percent(share)}" for name, share in summary.cut.items() if share)
    told = f"<p>Answers that were cut at {whole(summary.longest)} tokens, and are marked as they stand: {cut}.</p>"
    warning = _warning(remarks.held_out_cut(max(summary.cut.values(), default=0.0), summary.longest))
    return (
        "<p>Share of the held-out questions that each model answers rightly when it always takes its likeliest next "
        f"token; an answer is right if {right}. Marks are measured values and lines their 95 % intervals; “all kinds” "
        "is the mean over the kinds, so that no kind counts more because it is asked more often."
        f"{f' Of {whole(hidden)} more kinds only the mean tells.' if hidden else ''}</p>"
        f'{left_out}{told if cut else ""}{warning}<div class="wide">{accuracy_chart(before, after, teacher)}</div>'
        f"{table(head, rows, numbers=range(1, 6), foot=total)}"
    )


def stages(summary: Summary) -> str:
    """The stages table: what each masked teacher made."""
    head = (
        "stage",
        "mask ratio",
        "achieved sparsity",
        "questions",
        "set aside",
        "seconds",
        "answers",
        "unjudged",
        "empty",
        "cut: teacher’s, student’s",
        "teacher’s answers right",
        "student’s answers right",
        "left-out mass",
        "teacher digest",
    )
    outcomes = summary.stages
    rows = [
        [
            str(stage.stage),
            percent(stage.ratio, 1),
            percent(stage.sparsity, 3),
            whole(stage.rows),
            _set_aside(stage),
            f"{stage.seconds:,.1f}",
            whole(stage.answers),
            whole(stage.unjudged),
            whole(stage.empty),
            ", ".join(percent(stage.cut_by_source.get(source, math.nan)) for source in ("teacher", "student")),
            _meter(stage, "teacher"),
            _meter(stage, "student"),
            small_percent(stage.left_out),
            _digest(stage.teacher_digest),
        ]
        for stage in outcomes
    ]
    total = [
        "all",
        "",
        "",
        whole(sum(stage.rows for stage in outcomes)),
        whole(sum(sum(stage.set_aside.values()) for stage in outcomes)),
        f"{sum(stage.seconds for stage in outcomes):,.1f}",
        whole(sum(stage.answers for stage in outcomes)),
        whole(sum(stage.unjudged for stage in outcomes)),
        whole(sum(stage.empty for stage in outcomes)),
        *[""] * 5,
    ]
    most = max((stage.left_out for stage in outcomes), default=0.0)
    warning = (
        f'<p class="warning">Up to {small_percent(most)} of the teacher’s probability was left out. JSD and R_distill '
        "only see the rest: the true JSD may be much larger, up to the dashed line in its curve below. A larger "
        "teacher.top_k keeps more.</p>"
        if most > _MUCH_LEFT_OUT
        else ""
    )
    warning += "".join(
        _warning(tell(f"stage {stage.stage}", stage)) for stage in outcomes for tell in (remarks.cut, remarks.defused)
    )
    return (
        "<p>One row for each stage. The <b>mask ratio</b> is the share of each weight matrix of the teacher that is "
        "set to zero, smallest weights first; at 0 the teacher is whole. A masked teacher is usually weaker, and "
        "easier for the student to imitate.</p>"
        "<p><b>Achieved sparsity</b> is the share that really is zero. <b>Unjudged</b> answers, whose verdict could "
        "not be read, are left out; <b>empty</b> ones have no word, <b>cut</b> ones "
        "end at the longest length. Questions are <b>set aside</b> when a picture "
        "cannot be opened, an engine does not take them, fewer than two of their answers could be judged, or replicas "
        "died on them. The <b>left-out mass</b> is the probability that the stored teacher distributions "
        "(only the likeliest tokens are kept) leave out on average: the smaller, the more exact is the JSD.</p>"
        f"{table(head, rows, numbers=range(13), foot=total) if rows else '<p>No stage was recorded.</p>'}{warning}"
    )


def judge(summary: Summary) -> str:
    """How far the judge can be trusted."""
    judged = f"{whole(summary.judged)} answers judged, {whole(summary.unjudged)} unjudged."
    if not math.isfinite(summary.agreement_with_rule):
        agreement = "How often the judge agrees with the rule was not measured."
    else:
        agreement = (
            f"Judge and rule say the same on <b>{percent(summary.agreement_with_rule, 2)}</b> of the judged answers."
        )
    rows = []
    for stage in summary.stages:
        count = stage.compared
        shares = [
            right / count if count else math.nan
            for right in (stage.judge_rule_agreements, stage.judge_right, stage.rule_right)
        ]
        kappa = decimal(remarks.kappa(stage))
        rows.append([str(stage.stage), whole(count), *(percent(share, 2) for share in shares), kappa])
        agreement += _warning(remarks.disagreement(f"stage {stage.stage}", stage, summary.rule))
    head = ("stage", "answers that both marked", "the same", "right by the judge", "right by the rule", "Cohen’s κ")
    by_stage = f'<div class="slim">{table(head, rows, numbers=range(6))}</div>' if rows else ""
    return (
        f"<p>{_who_judges(summary.judges)} {_RULES.get(summary.rule, '')} Such a rule is a good check where labels are "
        "single words, and too strict where a right answer can be put in many ways.</p>"
        f"<p>{agreement} {judged}</p>{_reasoning(summary)}{by_stage}"
    )


def _warning(remark: str) -> str:
    return f'<p class="warning">{escape(remark)}</p>' if remark else ""


def _who_judges(judges: Mapping[str, str]) -> str:
    of_teacher, of_student = (_JUDGES.get(judges[source], escape(judges[source])) for source in ("teacher", "student"))
    if of_teacher == of_student:
        return f"R_acc comes from {of_teacher}."
    return f"R_acc of the teacher’s answers comes from {of_teacher}, that of the student’s from {of_student}."


def _reasoning(summary: Summary) -> str:
    """Mean R_rea of each stage, if anybody was asked."""
    asked = [stage for stage in summary.stages if stage.reasoning is not None and math.isfinite(stage.reasoning)]
    if not asked:
        return ""
    told = ", ".join(f"{percent(stage.reasoning or 0.0, 1)} in stage {stage.stage}" for stage in asked)
    return f"<p>Answers whose reasoning supports them, by the same judges: {told}.</p>"


def run_facts(summary: Summary) -> str:
    """Models, data, learner, versions, the time by phase and the configuration."""
    learner = summary.learner
    named = [("teacher" if not number else f"teacher {number + 1}", one) for number, one in enumerate(summary.teachers)]
    models = table(
        ("model", "checkpoint", "parameters", "digest"),
        [
            [
                name,
                f"<code>{escape(model.checkpoint)}</code>",
                f'<span title="{whole(model.parameters)}">{parameters(model.parameters)}</span>',
                _digest(model.digest),
            ]
            for name, model in (*named, ("student", summary.student_model))
        ],
        numbers=(2,),
    )
    run = facts(
        [
            ("started", escape(summary.started.replace("T", " "))),
            ("wall time", duration(summary.wall_seconds)),
            ("directory", f"<code>{escape(summary.directory)}</code>"),
            ("configuration", f"<code>{escape(summary.config_file)}</code>"),
            ("seed", str(summary.seed)),
            ("training questions", _split(summary.train)),
            ("held-out questions", _split(summary.held_out)),
            (
                "held-out questions in training",
                f"{whole(summary.same_question)}; {whole(summary.same_picture)} share only their pictures",
            ),
            ("optimizer steps", f"{whole(learner.steps)} in {duration(learner.seconds)}"),
            ("steps skipped", f"{whole(learner.skipped)} (loss or gradient not finite)"),
            ("stored rows that could not be read", f"{whole(learner.left_out)} (quarantine.jsonl has the reasons)"),
            ("learner and engine", "<br>".join(map(_agreement, learner.agreements)) or "not compared"),
            ("groups learned from", whole(learner.groups)),
            ("answer tokens learned from", whole(learner.answer_tokens)),
            (
                "tokens learned from",
                f"{whole(learner.tokens)}, prompts once; {whole(round(learner.tokens / learner.seconds))} per second",
            ),
            ("learner workers", f"{whole(learner.workers)}, ZeRO stage {learner.zero_stage}"),
        ]
    )
    versions = facts([(name, escape(version)) for name, version in summary.versions.items()])
    return (
        "<p>What ran, on what, and how long. A digest is a fingerprint of a checkpoint’s files: the same digest, the "
        f"same weights.</p>{models}{run}<h3>Wall time by phase</h3>{_phases(summary)}<h3>Versions</h3>{versions}"
        "<details><summary>The whole configuration (YAML)</summary>"
        f"<pre>{escape(summary.config)}</pre></details>"
    )


def _split(split: Split) -> str:
    told = "; ".join([f"{whole(split.quarantined)} set aside", *map(escape, split.remarks)])
    return f"{whole(split.problems)} ({told})"


def _agreement(one: LogprobMismatch) -> str:
    return (
        f"stage {one.stage}: {one.mean_gap:.2g} nats per token apart at most (of {whole(one.rows)} rows, "
        f"{escape(one.row)}; {one.bound:g} is allowed), {one.token_gap:.2g} at one token"
    )


def _apart(one: Accuracy, other: Accuracy) -> bool:
    return one.high < other.low or other.high < one.low


def _digest(digest: str) -> str:
    return f'<code class="together" title="{escape(digest)}">{escape(digest[:_DIGEST])}</code>'


def _set_aside(stage: StageOutcome) -> str:
    kinds = ", ".join(f"{escape(kind)} {whole(count)}" for kind, count in stage.set_aside.items())
    return whole(sum(stage.set_aside.values())) + (f" ({kinds})" if kinds else "")


def _meter(stage: StageOutcome, source: str) -> str:
    rate = stage.accuracy_by_source.get(source, math.nan)
    return f"{percent(rate)} {bar(rate, 'teacher' if source == 'teacher' else 'after')}"


def _phases(summary: Summary) -> str:
    phases = {name: seconds for name, seconds in summary.phases.items() if math.isfinite(seconds)}
    rest = summary.wall_seconds - sum(phases.values())
    if math.isfinite(rest) and rest > 0.005 * summary.wall_seconds:
        phases["everything else"] = rest
    total = sum(phases.values())
    longest = max(phases.values(), default=0.0)
    rows = [
        [
            escape(name),
            duration(seconds),
            percent(seconds / total if total > 0 else math.nan, 0),
            bar(seconds / longest if longest > 0 else 0.0, "after"),
        ]
        for name, seconds in phases.items()
    ]
    return f'<div class="phases">{table(("phase", "time", "share", ""), rows, numbers=(1, 2))}</div>'
