"""``masters-ray validate``: what a run would refuse in its first minute, by the same functions."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from masters_ray import cluster, schedule, validation, weights
from masters_ray.config import Config
from masters_ray.errors import CheckpointError, Complaint, ConfigError, DataError, StoreError
from masters_ray.files import read_json
from masters_ray.pipeline import inputs
from masters_ray.pipeline.directory import RunDirectory
from masters_ray.preflight import gpus, machine, prompts, rows
from masters_ray.progress import say
from masters_ray.store import MANIFEST

_ANY_NUMBER = 10**6
"""Of questions: how many there are changes no stage."""
_BY_WEIGHTS = {"student_digest", "reference_digest"}


def validate(file: str | Path, overrides: list[str], *, whole: bool) -> str:
    """Look at everything that can be looked at without starting anything, and say what is found; whole: at all rows.
    Returns what was not looked at, "" for nothing. Raises ConfigError with every complaint."""
    config, complaints = validation.examined(file, overrides)
    wrong = {complaint.where for complaint in complaints}

    def sound(*keys: str) -> bool:
        return not any(where.startswith(keys) for where in wrong)

    models = _local(config, wrong)
    if sound("run.", "rollout.store"):
        complaints += _run_directory(config) or _rollouts(config, models)
    complaints += _reuse(config) if sound("rollout.reuse") else []
    misplaced, unplaced = _placed(config)
    complaints += misplaced
    seen = []
    with _scratch(config, whole=whole) as scratch:
        for name in ("train", "held_out"):
            if sound(f"data.{name}", "data.max"):
                found, broken = rows.look(config, name, list(models.values()), scratch, whole=whole)
                seen += [found] if found else []
                complaints += broken
        if len(seen) == 2:
            inputs.told_overlap(seen[0].loaded, seen[1].loaded)
        complaints += prompts.look(config, seen, models)
        complaints += _stages(config, seen)
        if sound("run.", "rollout.store"):
            complaints += machine.look(config, seen, models)
    complaints += gpus.look(config)
    if complaints:
        raise ConfigError(complaints)
    if (told := validation.online_schedule(config)) is not None:
        say(told)
    left = " and ".join(f"data.{one.name}" for one in seen if one.more)
    unseen = f"rows after the first {rows.FIRST} of {left} were not looked at (--all)" if left else ""
    absent = " and ".join(name for name in config.models if name not in models)
    unchecked = f"{absent}: not downloaded yet, and not looked at" if absent else ""
    return "; ".join(one for one in (unseen, unchecked, unplaced) if one)


def _local(config: Config, wrong: set[str]) -> dict[str, Path]:
    """Those of ``config.models`` whose checkpoints are here and in order → their directories."""
    found = {}
    for name, model in config.models.items():
        if f"{name}.checkpoint" not in wrong:
            try:
                folder = weights.locate_locally(model.checkpoint)
            except CheckpointError:
                continue
            if folder is not None:
                found[name] = folder
    return found


def _run_directory(config: Config) -> list[Complaint]:
    """Another run in the directory, one that is under way there, damaged records."""
    try:
        directory = RunDirectory(config)
        directory.look_at_lock()
        if directory.file("journal.json").exists():
            read_json(directory.file("journal.json"))
        if directory.finished:
            say(f"{directory.root} holds this run, finished: run would only write its report again")
    except ConfigError as error:
        return error.complaints
    except (StoreError, OSError) as error:
        return [_told("run.dir", "a directory that this run can use", error)]
    return []


def _rollouts(config: Config, models: dict[str, Path]) -> list[Complaint]:
    """Finished stores that another recipe made, as far as it can be told without reading weights."""
    directory = RunDirectory(config)
    complaints: list[Complaint] = []
    if directory.student.exists() or models.keys() != config.models.keys():
        return complaints  # nothing is made any more, or the models are not here
    for stage, _ in schedule.plan(config.schedules, _ANY_NUMBER):
        folder = directory.stage(stage.index)
        try:
            if not folder.has(MANIFEST):
                continue
            from masters_ray.pipeline import contents, stages
            from masters_ray.pipeline.verdicts import Judging

            one = config.of_teacher(stage.teacher)
            settings = stages.recipe(one, stage, "", "", Judging(settings=one.judge, models={})).settings
            told = contents.other_recipe(folder, {key: settings[key] for key in settings.keys() - _BY_WEIGHTS})
        except ImportError as error:
            say(f"{folder}: not looked at, since {error.name} is not installed here")
            return []
        except StoreError as error:
            say(f"{folder}: {error} A run mends that, or says why it cannot")
            continue
        if told:
            expected = f"rows of this configuration in {folder}"
            remedy = "Set it back, or choose another run.dir and rollout.store."
            complaints.append(Complaint(where="rollout.store", expected=expected, found=told, remedy=remedy))
    return complaints


def _reuse(config: Config) -> list[Complaint]:
    if not config.rollout.reuse:
        return []
    try:
        from masters_ray.pipeline.rollouts import stores_in
    except ImportError as error:
        say(f"rollout.reuse: not looked at, since {error.name} is not installed here")
        return []
    complaints = []
    for folder in config.rollout.reuse:
        try:
            stores_in(folder)
        except StoreError as error:
            complaints.append(_told("rollout.reuse", "directories with stores", error))
    return complaints


def _placed(config: Config) -> tuple[list[Complaint], str]:
    """(what the cluster, or the Ray that run would start here, does not hold; why that is not known)."""
    asks = any(model.gpus for model in (*config.models.values(), config.learner))
    try:
        if os.environ.get("RAY_ADDRESS"):
            with cluster.connected(config.cluster):
                validation.check_cluster(config)
            return [], ""
        here = machine.resources(config.cluster)
        if asks and not here["GPU"]:
            return [], "placement was not looked at, since there is no GPU here and RAY_ADDRESS is not set"
        validation.placed(config, [here])
    except ImportError as error:
        return [], f"placement was not looked at, since {str(error.name).partition('.')[0]} is not installed here"
    except ConfigError as error:
        return error.complaints, ""
    return [], ""


def _stages(config: Config, seen: list[rows.Seen]) -> list[Complaint]:
    """A stage without a question. How many there are is known once all rows were looked at, or as conf says."""
    train = next((one for one in seen if one.name == "train"), None)
    questions = train.questions if train else None
    if questions is None:
        return []
    try:
        inputs.plan(config, questions)
    except DataError as error:
        return [_told("schedule", "questions for every stage", error)]
    return []


@contextmanager
def _scratch(config: Config, *, whole: bool) -> Iterator[Path]:
    """A directory that goes with the block: a temporary one, for all rows where the run has them."""
    near = machine.nearest(Path(config.run.dir or ".")) if whole else None
    try:
        folder = tempfile.TemporaryDirectory(prefix=".masters-validate-", dir=near, ignore_cleanup_errors=True)
    except OSError:
        folder = tempfile.TemporaryDirectory(prefix="masters-validate-", ignore_cleanup_errors=True)
    with folder as name:
        yield Path(name)


def _told(where: str, expected: str, error: Exception) -> Complaint:
    return Complaint(where=where, expected=expected, found=str(error).rstrip("."), remedy="")
