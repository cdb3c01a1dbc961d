"""The mask scan: JSD of masked teacher and student per mask ratio (appendix F.4), and quality of its answers (F.3). A
run should start at the ratio with the lowest JSD, if that is known to be lower than without a mask: less masking is
harder to imitate, more distorts the teacher.

each ratio: the masked teacher answers, all answers are judged and scored ─► store ─► JSD to the student
the student's answers are written once
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any, TypeVar

from masters_ray import store
from masters_ray.config import Config
from masters_ray.errors import StoreError
from masters_ray.evaluate import Interval
from masters_ray.files import read_record, write_json
from masters_ray.learner.measure import Divergence, divergences
from masters_ray.pipeline import run
from masters_ray.pipeline.run_dir import RunDirectory
from masters_ray.progress import Doing, say, warn
from masters_ray.records import JudgedText, StageOutcome
from masters_ray.replicas.spec import absolute
from masters_ray.report import charts
from masters_ray.studies import publish, sample_seconds, told_time
from masters_ray.studies.statistics import questions_needed, resampled_mean, resampled_share

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Scanned:
    """Figures of a mask ratio. Divergences are in nats, shares are fractions."""

    ratio: float
    sparsity: float  # mask ratio achieved
    jsd: Interval  # mean over questions of the mean JSD of a question's answers
    jsd_by_source: dict[str, Interval]
    jsd_by_kind: dict[str, Interval]
    against_best: Interval  # mean over questions of JSD minus that at the best ratio; all intervals hold at once
    teacher_right: Interval | None  # R_acc of the masked teacher's answers; None, here and below: no answer has it
    teacher_right_by_kind: dict[str, Interval]
    teacher_reasoning: Interval | None  # r_rea, likewise
    teacher_cut: float | None
    left_out: float  # ``AnswerTally.tail_mass``, which the JSD sums up as one token


def scan(config: Config, directory: RunDirectory, config_file: str) -> Path:
    """Makes the missing parts of a scan; Ray must be started. config: from ``sample``. Returns the page's path."""
    rollout, ratios, questions = config.rollout, len(config.schedule.stages), config.data.train_rows or 0
    # Measuring a row takes less than learning from it.
    time = told_time(
        [directory.root.parent], lambda rates: sample_seconds(config, rates) + questions * ratios * rates.group_seconds
    )
    say(
        f"{questions} questions at {ratios} mask ratios: {questions * rollout.teacher_answers * ratios:,} answers of "
        f"masked teachers and {questions * rollout.student_answers:,} of the student are written and judged, "
        f"{questions * config.group_size * ratios:,} are scored by teacher and student: {time}"
    )
    folders = run.generate(config, directory, config_file, measure=False)
    manifests = [manifest for folder in folders if (manifest := store.read_manifest(folder))]
    outcomes = [StageOutcome(**manifest.made_by) for manifest in manifests]
    names = [f"stage-{index}-{store.digest_of(one.shards)[:16]}.json" for index, one in enumerate(manifests)]
    measured = _measured(config, folders, [directory.root / "divergences" / name for name in names])
    found = scanned(outcomes, measured, [list(store.read_judged(one)) for one in folders])
    return publish_scan(config, directory.root, found)


def scanned(
    outcomes: Sequence[StageOutcome], measured: Sequence[Sequence[Divergence]], judged: Sequence[Sequence[JudgedText]]
) -> list[Scanned]:
    """Returns the figures of each ratio. measured: its answers' divergences; judged: its judged answers."""
    by_question = [_by_question(rows) for rows in measured]
    best = min(by_question, key=lambda one: sum(one.values()) / len(one))
    found = []
    for outcome, rows, own, answers in zip(outcomes, measured, by_question, judged, strict=True):
        shared = sorted(own.keys() & best.keys())
        of_teacher = [one for one in answers if one.source == "teacher"]
        kinds = _parts(of_teacher, "kind")
        found.append(
            Scanned(
                ratio=outcome.ratio,
                sparsity=outcome.sparsity,
                jsd=_mean(rows),
                jsd_by_source={source: _mean(part) for source, part in _parts(rows, "source")},
                jsd_by_kind={kind: _mean(part) for kind, part in _parts(rows, "kind")},
                against_best=resampled_mean(
                    [own[position] - best[position] for position in shared], comparisons=max(1, len(measured) - 1)
                ),
                teacher_right=_share(of_teacher, "accuracy"),
                teacher_right_by_kind={kind: share for kind, part in kinds if (share := _share(part, "accuracy"))},
                teacher_reasoning=_share(of_teacher, "reasoning"),
                teacher_cut=outcome.rates("cut", "written").get("teacher"),
                left_out=outcome.tail_mass,
            )
        )
    return found


def advise(found: Sequence[Scanned]) -> dict[str, Any]:
    """Returns what a scan says of a run's start, as ratios. lowest: of the lowest JSD; equal: not told from it; start:
    None if nothing is known to be worse, or it is not known to be better than no mask; rival: the one to tell it from
    before it is recommended, with the number of questions needed."""
    best, others = min(found, key=lambda one: one.jsd.value), len(found) - 1
    worse = [one.ratio for one in found if one.against_best.settled]
    equal = {one.ratio: one.against_best for one in found if one is not best and not one.against_best.settled}
    needed = {ratio: questions_needed(more, others) for ratio, more in equal.items()}
    rival = 0.0 if 0.0 in needed else min(needed, key=lambda ratio: needed[ratio], default=None)
    return {
        "lowest": best.ratio,
        "start": best.ratio if worse and 0.0 not in equal else None,
        "equal": [*equal],
        "over_masked": sorted(ratio for ratio in worse if ratio > best.ratio),
        "rival": rival,
        "needed": None if rival is None else needed[rival],
    }


def publish_scan(config: Config, folder: Path, found: Sequence[Scanned]) -> Path:
    figures = {"questions": config.data.train_rows, "ratios": found, "advice": advise(found)}
    return publish(folder, "mask_scan", config, figures, name=folder.parent.name, charts=charts)


def _measured(config: Config, folders: Sequence[store.Folder], files: Sequence[Path]) -> list[list[Divergence]]:
    """Returns the divergences of each store; measures those whose file is missing. Raises StoreError."""
    missing = {file: folder for file, folder in zip(files, folders, strict=True) if not file.exists()}
    if missing:
        with Doing(f"divergences of {len(missing)} ratios are measured"):
            news = divergences(absolute(config.student.checkpoint), config.learner, list(missing.values()))
        for (file, folder), (rows, unreadable) in zip(missing.items(), news, strict=True):
            told = f"{len(unreadable)} of its rows cannot be read{''.join(f' ({one})' for one in unreadable[:1])}"
            if not rows:
                raise StoreError(f"{folder}: no row to measure; {told}. masters-ray store inspect says what it holds.")
            if unreadable:
                warn(f"{folder}: {told}; its divergence is of the others")
            write_json(file, rows)
    return [read_record(file, list[Divergence]) for file in files]


def _by_question(rows: Iterable[Divergence]) -> dict[int, float]:
    """Returns position → mean JSD (nats) over the question's answers."""
    return {position: sum(one.nats for one in part) / len(part) for position, part in _parts(rows, "position")}


def _mean(rows: Iterable[Divergence]) -> Interval:
    return resampled_mean(list(_by_question(rows).values()))


def _share(answers: Sequence[JudgedText], reward: str) -> Interval | None:
    """Returns the mean of a reward (0 or 1) over the answers that have it, resampled by question; None without any."""
    asked = [(value, str(one.position)) for one in answers if (value := getattr(one, reward)) is not None]
    return resampled_share([value for value, _ in asked], [question for _, question in asked]) if asked else None


def _parts(rows: Iterable[T], field: str) -> list[tuple[Any, list[T]]]:
    """Returns (value of the field, rows that have it), sorted by value."""
    value = attrgetter(field)
    return [(of, list(part)) for of, part in groupby(sorted(rows, key=value), value)]
