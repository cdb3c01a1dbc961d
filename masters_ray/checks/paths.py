"""Where a run reads and writes: data files, its directory, stores."""

from __future__ import annotations

from pathlib import Path

from masters_ray import data, schedule
from masters_ray.checks.context import CheckContext, Findings, from_error
from masters_ray.errors import Complaint, ConfigError, DataError, StoreError
from masters_ray.files import read_json
from masters_ray.pipeline.directory import RunDirectory
from masters_ray.store import MANIFEST, Folder

_ANY_NUMBER = 10**6
"""Of questions: how many there are changes no stage."""
COPY = "working_dir_files"
"""Directory of the copies that Ray makes of what is submitted."""
_BY_WEIGHTS = {"student_digest", "reference_digest"}


def data_files(context: CheckContext) -> Findings:
    """Data files are there, in a form that is read."""
    for name, source in (("train", context.config.data.train), ("held_out", context.config.data.held_out)):
        if source.path:
            try:
                found, _, remedy = (data.in_place_of(source) or "").partition(". ")
            except DataError as error:
                found, remedy = str(error), ""
            if found:
                yield Complaint(f"data.{name}.path", f"a {source.format} file", f"{source.path}: {found}", remedy)


def addresses(context: CheckContext) -> Findings:
    """Stores are named by a path or an address."""
    rollout = context.config.rollout
    for key, where in (("rollout.store", rollout.store), *(("rollout.reuse", one) for one in rollout.reuse)):
        try:
            Folder(where or ".")
        except StoreError as error:
            expected = "a path, or an address such as s3://bucket/folder or gs://bucket/folder"
            yield Complaint(key, expected, repr(where), str(error))


def not_in_a_copy(context: CheckContext) -> Findings:
    """A job's run.dir does not lie in Ray's copy of what was submitted, which Ray removes."""
    run_dir = context.config.run.dir
    if run_dir and COPY in Path.cwd().parts and not Path(run_dir).is_absolute():
        found = f"{run_dir!r}, which lies in the job's copy of the project and goes with it"
        remedy = "Write run.dir=/shared/…, or hand the run over with masters-ray submit."
        yield Complaint("run.dir", "a whole path that every node sees", found, remedy)


def directory(context: CheckContext) -> Findings:
    """run.dir holds no other run, none that is under way, no damaged records, no stores of another recipe."""
    try:
        held = RunDirectory(context.config)
        held.look_at_lock()
        if held.file("journal.json").exists():
            read_json(held.file("journal.json"))
    except ConfigError as error:
        yield from error.complaints
        return
    except (StoreError, OSError) as error:
        yield from_error("run.dir", "a directory that this run can use", error)
        return
    if held.finished:
        yield f"{held.root} holds this run, finished: run would only write its report again"
    if not held.student.exists() and context.models.keys() == context.config.models.keys():
        yield from _other_recipes(context, held)


def _other_recipes(context: CheckContext, held: RunDirectory) -> Findings:
    """Finished stores that another recipe made, as far as it can be told without reading weights."""
    for stage, _ in schedule.plan(context.config.schedules, _ANY_NUMBER):
        folder = held.stage(stage.index)
        try:
            if not folder.has(MANIFEST):
                continue
            from masters_ray.pipeline import contents, recipes
            from masters_ray.pipeline.judging import Judging

            one = context.config.of_teacher(stage.teacher)
            settings = recipes.recipe(one, stage, "", "", Judging(settings=one.judge, models={})).settings
            other = contents.other_recipe(folder, {key: settings[key] for key in settings.keys() - _BY_WEIGHTS})
        except ImportError as error:
            yield f"{folder}: not looked at, since {error.name} is not installed here"
            return
        except StoreError as error:
            yield f"{folder}: {error} A run mends that, or says why it cannot"
            continue
        if other:
            remedy = "Set it back, or choose another run.dir and rollout.store."
            yield Complaint("rollout.store", f"rows of this configuration in {folder}", other, remedy)


def reuse(context: CheckContext) -> Findings:
    """Directories of rollout.reuse hold stores."""
    for folder in context.config.rollout.reuse:
        try:
            from masters_ray.pipeline.rollouts import stores_in

            stores_in(folder)
        except ImportError as error:
            yield f"rollout.reuse: not looked at, since {error.name} is not installed here"
            return
        except StoreError as error:
            yield from_error("rollout.reuse", "directories with stores", error)
