"""Checks of the places where a run works: its directory, its stores, the cluster."""

import os
import shutil
import tempfile
from pathlib import Path

from rich.filesize import decimal

from masters_ray.checks.context import CheckContext, Findings, NotChecked, guarded
from masters_ray.config import Config
from masters_ray.errors import Complaint
from masters_ray.files import read_json
from masters_ray.method import schedule
from masters_ray.models import weights
from masters_ray.pipeline.run_dir import RunDirectory
from masters_ray.replicas import placement
from masters_ray.store import MANIFEST, OTHER_RECIPE, SHARD, Folder

COPY = "working_dir_files"
"""Name of Ray's directory of copies of submitted projects."""
_ANY_NUMBER = 10**6
"""A number of questions; stages' settings do not depend on it."""
_BY_WEIGHTS = {"student_digest", "reference_digest"}
_OPTIMIZER = 12
"""Bytes per parameter of the optimizer's state in a checkpoint: a float32 copy and two moments."""


def not_in_a_copy(context: CheckContext) -> Findings:
    """Checks that a job's run.dir is not in Ray's copy of the submitted project, which Ray removes."""
    run_dir = context.config.run.dir
    if run_dir and COPY in Path.cwd().parts and not Path(run_dir).is_absolute():
        found = f"{run_dir!r}, which lies in the job's copy of the project and goes with it"
        remedy = "Write run.dir=/shared/…, or hand the run over with masters-ray submit."
        yield Complaint("run.dir", "a whole path that every node sees", found, remedy)


def directory(context: CheckContext) -> Findings:
    """Checks that run.dir holds no other run, no run that is under way, and no damaged records."""
    context.directory = held = RunDirectory(context.config)
    held.look_at_lock()
    if held.file("journal.json").exists():
        read_json(held.file("journal.json"))
    if held.finished:
        yield f"{held.root} holds this run, finished: run would only write its report again"


def recipes(context: CheckContext) -> Findings:
    """Checks that stores with rows were made by this configuration's recipe, as far as it is known without weights, and
    from these data, if all rows were read."""
    held = context.directory
    if held is None or held.student.exists() or context.folders.keys() != context.config.models.keys():
        return
    for stage, _ in schedule.plan(context.config.schedules, _ANY_NUMBER):
        folder = held.stage(stage.index)
        if folder.has(MANIFEST) or folder.names(SHARD):
            yield from guarded(
                "rollout.store", f"rows of this configuration in {folder}", _recipe(context, stage, folder)
            )


def _recipe(context: CheckContext, stage: schedule.Stage, folder: Folder) -> Findings:
    from masters_ray.pipeline.recipes import other_recipe, recipe

    config = context.config.of_teacher(stage.teacher)
    questions = {} if context.digest is None else {"data": context.digest}
    settings = recipe(config, stage, "", "", questions).settings
    if other := other_recipe(folder, {key: settings[key] for key in settings.keys() - _BY_WEIGHTS}):
        yield Complaint("rollout.store", f"rows of this configuration in {folder}", other, OTHER_RECIPE)


def reuse(context: CheckContext) -> Findings:
    """Checks that the directories of rollout.reuse hold stores."""
    if context.config.rollout.reuse:
        from masters_ray.pipeline.rollouts import stores_in

        for folder in context.config.rollout.reuse:
            stores_in(folder)
    yield from ()


def placed(context: CheckContext) -> Findings:
    """Checks that the cluster at RAY_ADDRESS, or a Ray on this machine, has room for what runs at one time."""
    from masters_ray import cluster  # imports Ray

    config = context.config
    if os.environ.get("RAY_ADDRESS"):
        with cluster.connected(config.cluster):
            cluster.place(config)
        return
    here = cluster.local_resources(config.cluster)
    if not here.get("GPU") and any(model.gpus for model in (*config.models.values(), config.learner)):
        yield NotChecked("placement was not looked at, since there is no GPU here and RAY_ADDRESS is not set")
    else:
        placement.place(config, [here])


def written(context: CheckContext) -> Findings:
    """Checks that run.dir and rollout.store can be written or made; leaves no file behind."""
    for key, where in (("run.dir", context.config.run.dir), ("rollout.store", context.config.rollout.store)):
        if where:
            yield from guarded(key, "a directory that can be written", _tried(Folder(where)))


def _tried(folder: Folder) -> Findings:
    if folder.on_disk:
        path = Path(folder.path(""))
        path.exists()  # raises without permission, or when a name is too long
        with tempfile.TemporaryFile(dir=_nearest(path)) as file:
            file.write(b"0")
            file.flush()
    else:
        folder.try_out()
    yield from ()


def room(context: CheckContext) -> Findings:
    """Checks that run.dir has room for what the learner writes."""
    if "student" in context.folders:
        run_dir = Path(context.config.run.dir)
        needed = learner_bytes(context.config, weights.parameter_count(context.folders["student"]))
        free = shutil.disk_usage(_nearest(run_dir)).free
        yield f"room: the learner writes up to {decimal(needed)} in {run_dir}, where {decimal(free)} are free"
        if needed > free:
            expected = f"{decimal(needed)} for the learner's checkpoints and the trained student"
            remedy = "Make room, choose another run.dir, or lower learner.checkpoints_kept."
            yield Complaint("run.dir", expected, f"{decimal(free)} in {run_dir}", remedy)


def _nearest(path: Path) -> Path:
    """Returns the path, or its nearest ancestor that exists; a dangling link counts as existing."""
    return next(one for one in (path.absolute(), *path.absolute().parents) if os.path.lexists(one))


def learner_bytes(config: Config, parameters: int) -> int:
    """Returns the bytes of the learner's checkpoints (those kept and one being written) and the exported student.
    Adapters' checkpoints are small and not counted."""
    weight = 2 if config.learner.dtype == "bfloat16" else 4
    if config.learner.lora.rank:
        return weight * parameters
    return parameters * (weight + (config.learner.checkpoints_kept + 1) * (weight + _OPTIMIZER))
