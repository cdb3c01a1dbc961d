"""Checks of the places where a run works: its directory, its stores, the cluster."""

import os
import shutil
import tempfile
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from requests.utils import get_netrc_auth
from rich.filesize import decimal

from masters_ray.checks.context import CheckContext
from masters_ray.files import read_record
from masters_ray.method import schedule
from masters_ray.models import weights
from masters_ray.pipeline.run_dir import RunDirectory
from masters_ray.progress import say
from masters_ray.replicas import placement
from masters_ray.store import MANIFEST, OTHER_RECIPE, SHARD, Folder, difference

COPY = "working_dir_files"  # name of Ray's directory of copies of submitted projects


def not_in_a_copy(context: CheckContext) -> None:
    """Checks that a job's run.dir is not in Ray's copy of the submitted project, which Ray removes."""
    run_dir = context.config.run.dir
    if run_dir and COPY in Path.cwd().parts and not Path(run_dir).is_absolute():
        found = f"{run_dir!r}, which lies in the job's copy of the project and goes with it"
        remedy = "Write run.dir=/shared/…, or hand the run over with masters-ray submit."
        context.complain("run.dir", "a whole path that every node sees", found, remedy)


def trackers(context: CheckContext) -> None:
    """Checks that the packages of the trackers are installed, and that wandb need not ask for a key."""
    named = context.config.tracker
    if missing := [name for name in named if find_spec(name) is None]:
        remedy = f"Install {' and '.join(missing)}: make trackers, or elsewhere pip install {' '.join(missing)}."
        context.complain("tracker", "trackers whose packages are installed", str(missing), remedy)
    if "wandb" not in named or "wandb" in missing:
        return
    settings = import_module("wandb").setup().settings
    keys = settings.api_key, settings.identity_token_file, get_netrc_auth(settings.base_url)
    if settings.mode == "online" and not any(keys):
        remedy = "Call wandb login, set WANDB_API_KEY, or keep the run's files here with WANDB_MODE=offline."
        context.complain("tracker", "a key for wandb's server", f"none for {settings.base_url}", remedy)


def directory(context: CheckContext) -> None:
    """Checks that run.dir holds no other run, no run that is under way, and no damaged records."""
    context.directory = held = RunDirectory(context.config)
    held.look_at_lock()
    if held.file("journal.json").exists():
        read_record(held.file("journal.json"), dict)
    if held.finished:
        say(f"{held.root} holds this run, finished: run would only write its report again")


def recipes(context: CheckContext) -> None:
    """Checks that stores with rows were made by this configuration's recipe, as far as it is known without weights and
    from the rows that were read."""
    held = context.directory
    if held is None or held.student.exists() or context.folders.keys() != context.config.models.keys():
        return
    questions = {} if context.digest is None else {"data": context.digest}
    for stage, _ in schedule.plan(context.config.schedules, 10**6):  # stages' settings do not depend on the number
        folder = held.stage(stage.index)
        if folder.has(MANIFEST) or folder.names(SHARD):
            from masters_ray.pipeline.recipes import recipe

            settings = recipe(context.config.of_teacher(stage.teacher), stage, "", "", questions).settings
            known = {key: settings[key] for key in settings.keys() - {"student_digest", "reference_digest"}}
            if other := difference(folder, known):
                context.complain("rollout.store", f"rows of this configuration in {folder}", other, OTHER_RECIPE)


def reuse(context: CheckContext) -> None:
    """Checks that the directories of rollout.reuse hold stores."""
    if context.config.rollout.reuse:
        from masters_ray.pipeline.rollouts import stores_in

        for folder in context.config.rollout.reuse:
            stores_in(folder)


def placed(context: CheckContext) -> None:
    """Checks that the cluster at RAY_ADDRESS, or a Ray on this machine, has room for what runs at one time."""
    from masters_ray import cluster  # imports Ray

    config = context.config
    if os.environ.get("RAY_ADDRESS"):
        with cluster.connected(config.cluster):
            cluster.place(config)
        return
    here = cluster.local_resources(config.cluster)
    wanted = [*(model.gpus for model in config.models.values()), config.learner.gpus]
    if any(wanted) and not here.get("GPU"):
        context.not_checked.append("placement was not looked at: there is no GPU here and RAY_ADDRESS is not set")
    else:
        placement.place(config, [here])


def written(context: CheckContext) -> None:
    """Checks that run.dir and rollout.store can be written or made; leaves no file behind."""
    for key, where in (("run.dir", context.config.run.dir), ("rollout.store", context.config.rollout.store)):
        if where:
            with context.guarded(key, "a directory that can be written"):
                folder = Folder(where)
                if folder.on_disk:
                    path = Path(folder.path(""))
                    path.exists()  # raises without permission, or when a name is too long
                    with tempfile.TemporaryFile(dir=_nearest(path)) as file:
                        file.write(b"0")
                else:
                    folder.try_writing()


def room(context: CheckContext) -> None:
    """Checks that run.dir has room for the exported student and the learner's checkpoints: those kept and one being
    written. Adapters' checkpoints are small and not counted."""
    if "student" in context.folders:
        run_dir, learner = Path(context.config.run.dir), context.config.learner
        weight, checkpoints = 2 if learner.dtype == "bfloat16" else 4, learner.checkpoints_kept + 1
        # A checkpoint has the weights and 12 bytes per parameter for the optimizer: a float32 copy and two moments.
        each = weight + (0 if learner.lora.rank else checkpoints * (weight + 12))
        needed = each * weights.parameter_count(context.folders["student"])
        free = shutil.disk_usage(_nearest(run_dir)).free
        say(f"room: the learner writes up to {decimal(needed)} in {run_dir}, where {decimal(free)} are free")
        if needed > free:
            expected = f"{decimal(needed)} for the learner's checkpoints and the trained student"
            remedy = "Make room, choose another run.dir, or lower learner.checkpoints_kept."
            context.complain("run.dir", expected, f"{decimal(free)} in {run_dir}", remedy)


def _nearest(path: Path) -> Path:
    """Returns the path, or its nearest ancestor that exists; a dangling link counts as existing."""
    return next(one for one in (path.absolute(), *path.absolute().parents) if os.path.lexists(one))
