"""Loads a run's questions and plans its stages. Needs no torch, so that a login node can do both."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from masters_ray import data
from masters_ray.config import Config, DataSource
from masters_ray.errors import DataError
from masters_ray.method import schedule
from masters_ray.method.schedule import Stage
from masters_ray.models import special_tokens, weights
from masters_ray.progress import say


def load(config: Config, folder: Path) -> tuple[data.Loaded, data.Loaded]:
    """Returns the training and the held-out questions in their seeded order; their SQLite files are in ``folder``."""
    checkpoints = [config.of_teacher(number).teacher.checkpoint for number in range(len(config.schedules))]
    models = [weights.locate(checkpoint) for checkpoint in dict.fromkeys([*checkpoints, config.student.checkpoint])]
    allowed = config.data.max_quarantined_share
    return (
        load_source(config, config.data.train, models, folder / "train.sqlite", allowed),
        load_source(config, config.data.held_out, models, folder / "held_out.sqlite", allowed),
    )


def load_source(
    config: Config,
    source: DataSource,
    models: Sequence[Path],
    spool: Path,
    max_quarantined_share: float,
    first: int | None = None,
) -> data.Loaded:
    """Loads a source as ``data.load`` does. models: checkpoint folders whose special tokens no text may contain."""
    asked = [*(config.of_teacher(number).teacher for number in range(len(config.schedules))), config.student]
    return data.load(
        source,
        config.run.seed,
        max_quarantined_share,
        min(model.engine.max_pictures for model in asked),
        max_pixels=config.data.max_picture_pixels,
        special=special_tokens.pattern(models),
        spool=spool,
        first=first,
    )


def report_loaded(train: data.Loaded, held_out: data.Loaded) -> data.Overlap:
    """Prints what was loaded, with remarks. Returns ``report_overlap``."""
    for name, loaded in (("training", train), ("held-out", held_out)):
        aside = f", {len(loaded.rejected)} rows set aside" if loaded.rejected else ""
        say(f"{len(loaded.problems)} {name} questions{aside}")
        if loaded.changes:
            changes = ", ".join(f"{count} {change}" for change, count in sorted(loaded.changes.items()))
            say(f"{name} pictures: {changes}")
        for remark in loaded.remarks:
            say(f"{name} questions: {remark}")
    return report_overlap(train, held_out)


def report_overlap(train: data.Loaded, held_out: data.Loaded) -> data.Overlap:
    """Prints and returns the overlap of training and held-out questions."""
    overlap = data.overlap(train.problems, held_out.problems)
    of = f" of {len(held_out.problems)}"
    if overlap.same_question:
        say(
            f"held-out questions that stand in training too, with the same pictures: {overlap.same_question}{of}; "
            f"accuracy on them says what the student remembers ({', '.join(overlap.examples)})"
        )
    if overlap.same_picture:
        say(
            f"held-out questions about pictures that stand in training with other questions: {overlap.same_picture}{of}"
        )
    return overlap


def digest_of(problems: data.Problems) -> str:
    """Returns the SHA-256 of the questions, independent of their order."""
    return hashlib.sha256(np.sort(problems.digests).tobytes()).hexdigest()


def plan(config: Config, questions: int) -> list[tuple[Stage, range]]:
    """Returns the run's stages with the positions of their questions. Raises DataError when a stage has none."""
    stages = schedule.plan(config.schedules, questions)
    for stage, positions in stages:
        if not positions:
            raise DataError(
                f"stage {stage.index} of {len(stages)} has none of the {questions} training questions. Use more "
                "questions, or fewer stages."
            )
    return stages
