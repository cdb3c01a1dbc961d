"""The machine or the cluster: room for processes, and on disks."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.filesize import decimal

from masters_ray import cluster, placement, weights
from masters_ray.checks.context import CheckContext, Findings, NotChecked
from masters_ray.config import Config
from masters_ray.errors import Complaint
from masters_ray.records import Picture, Problem
from masters_ray.schedule import ratios
from masters_ray.store import Folder

_SAMPLED = 64
"""Questions whose pictures stand for all."""
_PER_LOGPROB = 2
_PER_TOKEN = 12
"""Bytes of a stored answer token: for each kept log-probability (measured: 97 in all with 50), and beside them."""
_OPTIMIZER = 12
"""Bytes of a trained parameter in a checkpoint beside the weight: a float32 copy and two moments."""


def placed(context: CheckContext) -> Findings:
    """The cluster at RAY_ADDRESS, or the Ray that run would start here, holds what is asked for at one time."""
    config = context.config
    if os.environ.get("RAY_ADDRESS"):
        with cluster.connected(config.cluster):
            cluster.place(config)
        return
    here = cluster.resources(config.cluster)
    if not here["GPU"] and any(model.gpus for model in (*config.models.values(), config.learner)):
        yield NotChecked("placement was not looked at, since there is no GPU here and RAY_ADDRESS is not set")
    else:
        placement.place(config, [here])


def room(context: CheckContext) -> Findings:
    """run.dir and rollout.store can be written, and have room for what a run makes in any case."""
    config = context.config
    run_dir = Path(config.run.dir)
    store = Folder(config.rollout.store or run_dir)
    yield from writable("run.dir", run_dir)
    if not store.on_disk:
        store.try_out()
    elif config.rollout.store:
        yield from writable("rollout.store", Path(store.path("")))
    if "student" in context.folders:
        needed, free = learner_bytes(config, weights.parameter_count(context.folders["student"])), _free(run_dir)
        yield f"room: the learner writes up to {decimal(needed)} in {run_dir}, where {decimal(free)} are free"
        if needed > free:
            expected = f"{decimal(needed)} for the learner's checkpoints and the trained student"
            remedy = "Make room, choose another run.dir, or lower learner.checkpoints_kept."
            yield Complaint("run.dir", expected, f"{decimal(free)} in {run_dir}", remedy)
    if context.questions is not None and store.on_disk:
        rollouts = rollout_bytes(config, context.loaded["train"].problems, context.questions)
        most = f"{decimal(rollouts)} in {store}, where {decimal(_free(Path(store.path(''))))} are free"
        yield f"room: rollouts are up to {most}; few answers are as long as they may be"


def nearest(path: Path) -> Path:
    """The directory itself, or the one above it that is there, were it a link that leads nowhere."""
    return next(one for one in (path.absolute(), *path.absolute().parents) if os.path.lexists(one))


def writable(key: str, path: Path) -> Iterator[Complaint]:
    """Nothing when files can be written in a directory, or it can be made; leaves nothing behind."""
    near = nearest(path)
    try:
        path.exists()  # raises for what may not be looked at, or has too long a name
        with tempfile.TemporaryFile(dir=near) as file:
            file.write(b"0")
            file.flush()
    except OSError as error:
        remedy = "Choose another directory, mend its link or permissions, or make room."
        found = f"{path}: {near} cannot be ({error.strerror})"
        yield Complaint(key, "a directory that can be written", found, remedy)


def learner_bytes(config: Config, parameters: int) -> int:
    """Of checkpoints (those kept, and one that is being written) and the exported student. Adapters' own
    checkpoints are small and not counted."""
    weight = 2 if config.learner.dtype == "bfloat16" else 4
    if config.learner.lora.rank:
        return weight * parameters
    return parameters * (weight + (config.learner.checkpoints_kept + 1) * (weight + _OPTIMIZER))


def rollout_bytes(config: Config, problems: Sequence[Problem], questions: int) -> int:
    """Of the stages' stores at most: every answer as long as it may be. problems: those whose pictures are weighed."""
    pictures = 0
    if config.rollout.pictures == "embed":
        sample = problems[:_SAMPLED]
        pictures = sum(_bytes(picture) for problem in sample for picture in problem.pictures) // len(sample)
    total = 0.0
    for number, plan in enumerate(config.schedules):
        per_token = _PER_LOGPROB * config.of_teacher(number).teacher.top_k + _PER_TOKEN
        row = pictures + config.group_size * config.rollout.sampling.max_tokens * per_token
        passes = len(ratios(plan)) if plan.stage_data == "all" else 1 / len(config.schedules)
        total += questions * passes * row
    return int(total)


def _free(path: Path) -> int:
    return shutil.disk_usage(nearest(path)).free


def _bytes(picture: Picture) -> int:
    return len(picture.data) if picture.data is not None else Path(picture.path or "").stat().st_size
