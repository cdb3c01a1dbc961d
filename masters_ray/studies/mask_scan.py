"""How far masked teachers are from the student, ratio by ratio (appendix F.4), and how well they answer (F.3).

    each ratio: masked teacher writes, everybody is judged and scored ─► store ─► JSD to the student
    the student's answers are written once

The ratio with the lowest divergence is where a run should start: a weaker mask leaves the teacher harder to imitate, a
stronger one distorts it.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from masters_ray import store
from masters_ray.actors.deployments import absolute
from masters_ray.config import Config, Schedule, ScheduledStage, as_written, joined
from masters_ray.errors import Complaint, ConfigError, StoreError
from masters_ray.files import read_json, write_json
from masters_ray.learner.measure import Divergence, divergences
from masters_ray.pipeline import run
from masters_ray.pipeline.directory import RunDirectory
from masters_ray.progress import say
from masters_ray.records import JudgedText
from masters_ray.studies import mask_scan_page
from masters_ray.studies.statistics import Mean, as_json, resampled_mean, resampled_share

RESULT = "mask_scan.json"
PAGE = "mask_scan.html"


@dataclass(frozen=True, kw_only=True)
class Scanned:
    """One ratio."""

    ratio: float
    sparsity: float
    jsd: Mean
    """Over questions, each the mean of its answers; nats."""
    jsd_by_source: dict[str, Mean]
    jsd_by_kind: dict[str, Mean]
    against_best: Mean
    """JSD minus that of the best ratio, question by question."""
    teacher_right: Mean | None
    """R_acc of the masked teacher's answers; None where it wrote none."""
    teacher_right_by_kind: dict[str, Mean]
    teacher_reasoning: Mean | None
    """R_rea of the masked teacher's answers, if anybody was asked."""
    teacher_cut: float | None
    """Share of the masked teacher's answers that were cut at the most tokens; None where it wrote none."""
    left_out: float
    """Mean teacher mass outside the stored top k, which the JSD does not see."""


@dataclass(frozen=True, kw_only=True)
class Advice:
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
    run.generate(config, directory, config_file, measure=False)
    ratios = [stage.ratio for stage in config.schedule.stages]
    folders = [directory.stage(index) for index in range(len(ratios))]
    measured = _measured(config, directory, folders)
    found = scanned(
        [_finished(folder).made_by for folder in folders], measured, [list(store.read_judged(one)) for one in folders]
    )
    advice = advise(found)
    result = {
        "questions": config.data.train.rows,
        "ratios": [as_json(one) for one in found],
        "advice": as_json(advice),
        "config_file": config_file,
        "teacher": as_written(config.teacher.checkpoint),
        "student": as_written(config.student.checkpoint),
    }
    write_json(directory.file(RESULT), result)
    for line in table(found):
        say(line)
    say(advice.text)
    return mask_scan_page.write(directory.file(PAGE), config, found, advice)


def scanned(
    made: Sequence[dict[str, Any]],
    measured: Sequence[Sequence[Divergence]],
    judged: Sequence[Sequence[JudgedText]],
) -> list[Scanned]:
    """What the stores of the ratios say of themselves, with the divergences and the verdicts of their answers."""
    by_question = [_by_question(rows) for rows in measured]
    means = [sum(one.values()) / len(one) for one in by_question]
    best = by_question[means.index(min(means))]
    found = []
    for outcome, rows, own, answers in zip(made, measured, by_question, judged, strict=True):
        shared = sorted(own.keys() & best.keys())
        of_teacher = [one for one in answers if one.source == "teacher"]
        found.append(
            Scanned(
                ratio=outcome["ratio"],
                sparsity=outcome["sparsity"],
                jsd=resampled_mean(list(own.values())),
                jsd_by_source=_by(rows, "source"),
                jsd_by_kind=_by(rows, "kind"),
                against_best=resampled_mean([own[position] - best[position] for position in shared]),
                teacher_right=_share(of_teacher, "accuracy"),
                teacher_right_by_kind=_right_by_kind(of_teacher),
                teacher_reasoning=_share(of_teacher, "reasoning"),
                teacher_cut=outcome["cut_by_source"].get("teacher"),
                left_out=outcome["left_out"],
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


def table(found: Sequence[Scanned]) -> list[str]:
    """For a terminal; what is cut, R_acc and R_rea are of the masked teacher, R_rea only where anybody was asked."""
    asked = any(one.teacher_reasoning is not None for one in found)
    head = f"{'mask ratio':>10}  {'JSD (nats), 95 %':>24}  {'of teacher':>10}  {'of student':>10}  {'cut':>6}"
    lines = [f"{head}  {'R_acc':>6}" + (f"  {'R_rea':>6}" if asked else "")]
    for one in found:
        sources = [one.jsd_by_source.get(source) for source in ("teacher", "student")]
        teacher, student = ("–" if mean is None else f"{mean.value:.4f}" for mean in sources)
        right, reasoning = (
            "–" if mean is None else f"{mean.value:.1%}" for mean in (one.teacher_right, one.teacher_reasoning)
        )
        jsd = f"{one.jsd.value:.4f} ({one.jsd.low:.4f}–{one.jsd.high:.4f})"
        cut = "–" if one.teacher_cut is None else f"{one.teacher_cut:.1%}"
        line = f"{one.ratio:>10g}  {jsd:>24}  {teacher:>10}  {student:>10}  {cut:>6}  {right:>6}"
        lines.append(line + (f"  {reasoning:>6}" if asked else ""))
    return lines


def _measured(config: Config, directory: RunDirectory, folders: Sequence[store.Folder]) -> list[list[Divergence]]:
    """The divergences of each store, kept in a file of its content's name once they are measured."""
    names = [f"stage-{index}-{_finished(folder).digest[:16]}.json" for index, folder in enumerate(folders)]
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
            write_json(files[index], [dataclasses.asdict(row) for row in rows])
    return [[Divergence(**row) for row in read_json(file)] for file in files]


def _finished(folder: store.Folder) -> store.Manifest:
    manifest = store.read_manifest(folder)
    if manifest is None:
        raise StoreError(f"{folder}: not finished. Call again.")
    return manifest


def _by_question(rows: Sequence[Divergence]) -> dict[int, float]:
    """Position → mean over the question's answers."""
    found: dict[int, list[float]] = defaultdict(list)
    for row in rows:
        found[row.position].append(row.nats)
    return {position: sum(values) / len(values) for position, values in found.items()}


def _share(answers: Sequence[JudgedText], reward: str) -> Mean | None:
    """Mean of a reward, 0 or 1, over the answers that have it; those to one question are resampled together."""
    asked = [one for one in answers if getattr(one, reward) is not None]
    if not asked:
        return None
    return resampled_share([getattr(one, reward) for one in asked], [str(one.position) for one in asked])


def _right_by_kind(answers: Sequence[JudgedText]) -> dict[str, Mean]:
    kinds = sorted({one.kind for one in answers})
    shares = {kind: _share([one for one in answers if one.kind == kind], "accuracy") for kind in kinds}
    return {kind: share for kind, share in shares.items() if share is not None}


def _by(rows: Sequence[Divergence], field: str) -> dict[str, Mean]:
    parts: dict[str, list[Divergence]] = defaultdict(list)
    for row in rows:
        parts[getattr(row, field)].append(row)
    return {name: resampled_mean(list(_by_question(part).values())) for name, part in sorted(parts.items())}


def parse_ratios(text: str) -> list[float]:
    """Of the command line: numbers with commas between, from the largest. Raises ConfigError."""
    try:
        ratios = sorted({float(word) for word in text.split(",")}, reverse=True)
    except ValueError:
        ratios = [-1.0]
    if not all(0 <= ratio < 1 for ratio in ratios):
        raise ConfigError(
            [
                Complaint(
                    where="--ratios",
                    expected="ratios from 0 to below 1 with commas between",
                    found=text,
                    remedy="Write for instance 0.4,0.2,0.",
                )
            ]
        )
    return ratios
