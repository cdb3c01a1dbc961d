"""Loads a run's questions and plans its stages. Needs no torch, so that a login node can do both."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from masters_ray import data
from masters_ray.config import Config
from masters_ray.data.mixture import balanced, seeded
from masters_ray.errors import DataError
from masters_ray.method import schedule
from masters_ray.method.schedule import Stage
from masters_ray.models import weights
from masters_ray.progress import say, warn
from masters_ray.records import Problem


def load(config: Config, folder: Path) -> tuple[data.Problems, data.Problems]:
    """Returns the training and the held-out questions in their seeded order; their spools are in ``folder``."""
    checkpoints = [config.of_teacher(number).teacher.checkpoint for number in range(len(config.schedules))]
    models = [weights.locate(checkpoint) for checkpoint in dict.fromkeys([*checkpoints, config.student.checkpoint])]
    allowed = config.data.max_quarantined_share
    return (
        load_source(config, "train", models, folder / "train.spool", allowed),
        load_source(config, "held_out", models, folder / "held_out.spool", allowed),
    )


def load_source(
    config: Config,
    name: Literal["train", "held_out"],
    models: Sequence[Path],
    spool: Path,
    max_quarantined_share: float,
    first: int | None = None,
) -> data.Problems:
    """Loads ``name``'s sources as ``data.load`` does. models: checkpoint folders, whose special tokens no text may
    contain."""
    asked = [*(config.of_teacher(number).teacher for number in range(len(config.schedules))), config.student]
    return data.load(
        getattr(config.data, name),
        config.run.seed,
        max_quarantined_share,
        min(model.engine.max_pictures for model in asked),
        most=getattr(config.data, f"{name}_rows"),
        max_pixels=config.data.max_picture_pixels,
        special=weights.special_tokens(models),
        spool=spool,
        first=first,
    )


def report_loaded(train: data.Problems, held_out: data.Problems) -> data.Overlap:
    """Prints what was loaded, with remarks. Returns ``report_overlap``."""
    for name, loaded in (("training", train), ("held-out", held_out)):
        aside = f", {loaded.set_aside} rows set aside" if loaded.set_aside else ""
        (warn if aside else say)(f"{len(loaded)} {name} questions{aside}")
        if len(loaded.sources) > 1:
            shares = (f"{one.name} {one.taken} ({one.taken / len(loaded):.1%})" for one in loaded.sources)
            say(f"{name} questions by source: {', '.join(shares)}")
        for told in loaded.mended:
            say(f"{name} {told}")
        for remark in loaded.remarks:
            warn(f"{name} questions: {remark}")
    return report_overlap(train, held_out)


def report_overlap(train: data.Problems, held_out: data.Problems) -> data.Overlap:
    """Prints and returns the overlap of training and held-out questions."""
    overlap = data.overlap(train, held_out)
    of = f" of {len(held_out)}"
    if overlap.same_question:
        warn(
            f"held-out questions that stand in training too, with the same pictures: {overlap.same_question}{of}; "
            f"accuracy on them says what the student remembers ({', '.join(overlap.examples)})"
        )
    if overlap.same_picture:
        warn(
            f"held-out questions about pictures that stand in training with other questions: {overlap.same_picture}{of}"
        )
    return overlap


def digest_of(problems: Sequence[Problem]) -> str:
    """Returns the SHA-256 of the questions, independent of their order."""
    if isinstance(problems, data.Problems):
        digests = problems.digests
    else:
        digests = np.array([int(one.digest, 16) for one in problems], np.uint64)
    return hashlib.sha256(np.sort(digests).tobytes()).hexdigest()


def some(problems: data.Problems, count: int | None, seed: int) -> Sequence[Problem]:
    """Returns ``count`` of the questions drawn by ``seed``, the kinds in turn while they last; all for None."""
    if count is None or count >= len(problems):
        return problems
    _, kinds = np.unique([one.kind for one in problems], return_inverse=True)
    return [problems[int(place)] for place in np.sort(balanced(seeded(len(problems), seed), kinds)[:count])]


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
