"""How far masked teachers are from the student, ratio by ratio (appendix F.4), and how well they answer (F.3).

    each ratio: masked teacher writes, everybody is judged and scored ─► store ─► JSD to the student
    the student's answers are written once

The ratio with the lowest divergence is where a run should start: a weaker mask leaves the teacher harder to imitate, a
stronger one distorts it.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from markupsafe import Markup

from masters_ray import store
from masters_ray.config import Config, Schedule, ScheduledStage, as_written, joined
from masters_ray.errors import Complaint, ConfigError, StoreError
from masters_ray.evaluate import Interval
from masters_ray.files import MADE_AGAIN, as_json, read_record, write_json, write_text
from masters_ray.learner.measure import Divergence, divergences
from masters_ray.pipeline import run
from masters_ray.pipeline.directory import RunDirectory
from masters_ray.progress import say
from masters_ray.records import JudgedText, StageOutcome
from masters_ray.replicas.spec import absolute
from masters_ray.report.charts import ChartLine, line_chart
from masters_ray.report.render import render
from masters_ray.studies.statistics import resampled_mean, resampled_share

T = TypeVar("T")

RESULT = "mask_scan.json"
PAGE = "mask_scan.html"


@dataclass(frozen=True, kw_only=True)
class Scanned:
    """One mask ratio. Divergences are in nats, shares are fractions."""

    ratio: float
    sparsity: float
    """The share of the weights that really is zero."""
    jsd: Interval
    """Over questions, each the mean of its answers."""
    jsd_by_source: dict[str, Interval]
    jsd_by_kind: dict[str, Interval]
    against_best: Interval
    """JSD minus that of the best ratio, question by question."""
    teacher_right: Interval | None
    """R_acc of the masked teacher's answers; None where it wrote none."""
    teacher_right_by_kind: dict[str, Interval]
    teacher_reasoning: Interval | None
    """R_rea of the masked teacher's answers, if anybody was asked."""
    teacher_cut: float | None
    """Share of the masked teacher's answers that were cut at the most tokens; None where it wrote none."""
    left_out: float
    """Mean teacher mass outside the stored top k, which the JSD does not see."""


@dataclass(frozen=True, kw_only=True)
class Advice:
    """Which ratio to start from."""

    max_ratio: float
    """Where the divergence is lowest."""
    equal: list[float]
    """Other ratios that these questions cannot tell from it."""
    overmasked: list[float]
    """Larger ratios with a larger divergence."""
    text: str


def scan_config(config: Config, ratios: Sequence[float], questions: int) -> Config:
    """The configuration whose rollouts a scan makes: every ratio is a stage that sees the same questions."""
    return dataclasses.replace(
        config,
        run=dataclasses.replace(config.run, dir=joined(config.run.dir, f"mask-scan-{questions}")),
        data=dataclasses.replace(config.data, train=dataclasses.replace(config.data.train, rows=questions)),
        schedule=Schedule(stages=[ScheduledStage(ratio=ratio) for ratio in ratios], stage_data="all"),
        # A teacher that has lost too much to end its answers is what a scan looks for.
        rollout=dataclasses.replace(config.rollout, student_refresh="run", max_cut_share=1.0),
        growth=[],
    )


def cost(config: Config) -> str:
    """What a scan will ask of the engines, in a sentence."""
    rollout, ratios, questions = config.rollout, len(config.schedule.stages), config.data.train.rows or 0
    return (
        f"{questions} questions at {ratios} mask ratios: {questions * rollout.teacher_answers * ratios:,} answers of "
        f"masked teachers and {questions * rollout.student_answers:,} of the student are written and judged, "
        f"{questions * config.group_size * ratios:,} are scored by teacher and student"
    )


def scan(config: Config, directory: RunDirectory, config_file: str) -> Path:
    """Make what is missing of a scan; Ray must be started. config: of ``scan_config``. Returns the page's path."""
    say(cost(config))
    folders = run.generate(config, directory, config_file, measure=False)
    manifests = [_finished(folder) for folder in folders]
    outcomes = [StageOutcome(**manifest.made_by) for manifest in manifests]
    measured = _measured(config, directory, folders, manifests)
    found = scanned(outcomes, measured, [list(store.read_judged(one)) for one in folders])
    advice = advise(found)
    result = {
        "questions": config.data.train.rows,
        "ratios": found,
        "advice": advice,
        "config_file": config_file,
        "teacher": as_written(config.teacher.checkpoint),
        "student": as_written(config.student.checkpoint),
    }
    write_json(directory.file(RESULT), as_json(result))
    say(table(found) + advice.text)
    write_text(directory.file(PAGE), page(config, found, advice))
    return directory.file(PAGE)


def scanned(
    outcomes: Sequence[StageOutcome],
    measured: Sequence[Sequence[Divergence]],
    judged: Sequence[Sequence[JudgedText]],
) -> list[Scanned]:
    """What the stores of the ratios say of themselves, with the divergences and the verdicts of their answers."""
    by_question = [_by_question(rows) for rows in measured]
    means = [sum(one.values()) / len(one) for one in by_question]
    best = by_question[means.index(min(means))]
    found = []
    for outcome, rows, own, answers in zip(outcomes, measured, by_question, judged, strict=True):
        shared = sorted(own.keys() & best.keys())
        of_teacher = [one for one in answers if one.source == "teacher"]
        found.append(
            Scanned(
                ratio=outcome.ratio,
                sparsity=outcome.sparsity,
                jsd=_mean(rows),
                jsd_by_source={source: _mean(part) for source, part in _parts(rows, "source")},
                jsd_by_kind={kind: _mean(part) for kind, part in _parts(rows, "kind")},
                against_best=resampled_mean([own[position] - best[position] for position in shared]),
                teacher_right=_share(of_teacher, "accuracy"),
                teacher_right_by_kind={
                    kind: share for kind, part in _parts(of_teacher, "kind") if (share := _share(part, "accuracy"))
                },
                teacher_reasoning=_share(of_teacher, "reasoning"),
                teacher_cut=outcome.cut_by_source.get("teacher"),
                left_out=outcome.tail_mass,
            )
        )
    return found


def advise(found: Sequence[Scanned]) -> Advice:
    """Which ratio to start from, and which are too large."""
    best = min(found, key=lambda one: one.jsd.value)
    equal = [one.ratio for one in found if one is not best and not one.against_best.settled]
    overmasked = sorted(one.ratio for one in found if one.ratio > best.ratio and one.against_best.settled)
    if best.ratio == 0:
        text = "No mask brings the teacher nearer to the student: schedule.max_ratio=0."
    else:
        keys = f"schedule.max_ratio={best.ratio:g} schedule.step={best.ratio / 4:g}"
        text = f"The divergence is lowest at {best.ratio:g}: {keys}."
    if best.ratio == max(one.ratio for one in found) and len(found) > 1:
        text += " It is the largest ratio that was scanned: scan larger ones."
    if equal:
        text += f" These questions cannot tell it from {', '.join(f'{one:g}' for one in equal)}; more questions may."
    if overmasked:
        text += f" Over-masked: {', '.join(f'{one:g}' for one in overmasked)}; the divergence rises again there."
    return Advice(max_ratio=best.ratio, equal=equal, overmasked=overmasked, text=text)


def table(found: Sequence[Scanned]) -> str:
    """The scan for a terminal."""
    return render(__package__, "mask_scan.txt.jinja", found=found)


def page(config: Config, found: Sequence[Scanned], advice: Advice) -> str:
    """The scan as an HTML document, for a reader who has seen neither code nor run."""
    divergences = (
        ("all answers", "after", [one.jsd for one in found]),
        ("the teacher’s answers", "teacher", [one.jsd_by_source.get("teacher") for one in found]),
        ("the student’s answers", "before", [one.jsd_by_source.get("student") for one in found]),
    )
    rewards = (
        ("right answers (R_acc)", "teacher", [one.teacher_right for one in found]),
        ("supporting reasoning (R_rea)", "band", [one.teacher_reasoning for one in found]),
    )
    ratios = [100 * one.ratio for one in found]
    return render(
        __package__,
        "mask_scan.html.jinja",
        name=Path(config.run.dir).parent.name,
        config=config,
        found=found,
        advice=advice,
        jsd_chart=_chart("jsd", ratios, divergences, "JSD to the student (nats)"),
        quality_chart=_chart("quality", ratios, rewards, "share of the teacher’s answers"),
        kinds=sorted({kind for one in found for kind in one.jsd_by_kind}),
        answered=sorted({kind for one in found for kind in one.teacher_right_by_kind}),
    )


def _chart(
    name: str, ratios: Sequence[float], series: Iterable[tuple[str, str, Sequence[Interval | None]]], y_label: str
) -> Markup | None:
    """The lines that have a mean at every ratio; None without such a line."""
    lines = [ChartLine(label, colour, [mean for mean in means if mean]) for label, colour, means in series]
    whole = [line for line in lines if len(line.means) == len(ratios)]
    return line_chart(name, ratios, whole, "mask ratio (%)", y_label) if whole else None


def _measured(
    config: Config, directory: RunDirectory, folders: Sequence[store.Folder], manifests: Sequence[store.Manifest]
) -> list[list[Divergence]]:
    """The divergences of each store, kept in a file of its content's name once they are measured."""
    names = [f"stage-{index}-{manifest.digest[:16]}.json" for index, manifest in enumerate(manifests)]
    files = [directory.root / "divergences" / name for name in names]
    missing = [index for index, file in enumerate(files) if not file.exists()]
    if missing:
        say(f"divergences of {len(missing)} ratios are measured")
        student = absolute(config.student.checkpoint)
        news = divergences(student, config.learner, [folders[index] for index in missing])
        for index, (rows, unreadable) in zip(missing, news, strict=True):
            told = f"{len(unreadable)} rows cannot be read ({unreadable[0]})" if unreadable else ""
            if not rows:
                raise StoreError(
                    f"{folders[index]}: no rows, so no divergence{told and f'; {told}'}. Look at its account with "
                    "masters-ray store."
                )
            if told:
                say(f"stage {index}: {told}; its divergence is of the others")
            write_json(files[index], as_json(rows))
    return [read_record(file, list[Divergence], MADE_AGAIN) for file in files]


def _finished(folder: store.Folder) -> store.Manifest:
    manifest = store.read_manifest(folder)
    if manifest is None:
        raise StoreError(f"{folder}: not finished. Call again.")
    return manifest


def _by_question(rows: Iterable[Divergence]) -> dict[int, float]:
    """Position → mean over the question's answers."""
    found: dict[int, list[float]] = defaultdict(list)
    for row in rows:
        found[row.position].append(row.nats)
    return {position: sum(values) / len(values) for position, values in found.items()}


def _share(answers: Sequence[JudgedText], reward: str) -> Interval | None:
    """Mean of a reward, 0 or 1, over the answers that have it; those to one question are resampled together."""
    asked = [one for one in answers if getattr(one, reward) is not None]
    if not asked:
        return None
    return resampled_share([getattr(one, reward) for one in asked], [str(one.position) for one in asked])


def _mean(rows: Iterable[Divergence]) -> Interval:
    return resampled_mean(list(_by_question(rows).values()))


def _parts(rows: Iterable[T], field: str) -> list[tuple[str, list[T]]]:
    """Value of a field → the rows that have it, sorted."""
    parts: dict[str, list[T]] = defaultdict(list)
    for row in rows:
        parts[getattr(row, field)].append(row)
    return sorted(parts.items())


def parse_ratios(text: str) -> list[float]:
    """Of the command line: numbers with commas between, from the largest. Raises ConfigError."""
    try:
        ratios = sorted({float(word) for word in text.split(",")}, reverse=True)
    except ValueError:
        ratios = []
    if ratios and all(0 <= ratio < 1 for ratio in ratios):
        return ratios
    expected, remedy = "ratios from 0 to below 1 with commas between", "Write for instance 0.4,0.2,0."
    raise ConfigError([Complaint(where="--ratios", expected=expected, found=text, remedy=remedy)])
