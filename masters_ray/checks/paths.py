"""Where a run reads and writes: data files, its directory, stores."""

from __future__ import annotations

from pathlib import Path

from masters_ray import data
from masters_ray.checks.context import CheckContext, Findings
from masters_ray.errors import Complaint
from masters_ray.files import read_json
from masters_ray.pipeline.directory import RunDirectory

COPY = "working_dir_files"
"""Directory of the copies that Ray makes of what is submitted."""


def data_files(context: CheckContext) -> Findings:
    """Data files are there, in a form that is read."""
    for name, source in (("train", context.config.data.train), ("held_out", context.config.data.held_out)):
        if source.path and (other := data.in_place_of(source)):
            found, _, remedy = other.partition(". ")
            yield Complaint(f"data.{name}.path", f"a {source.format} file", f"{source.path}: {found}", remedy)


def not_in_a_copy(context: CheckContext) -> Findings:
    """A job's run.dir does not lie in Ray's copy of what was submitted, which Ray removes."""
    run_dir = context.config.run.dir
    if run_dir and COPY in Path.cwd().parts and not Path(run_dir).is_absolute():
        found = f"{run_dir!r}, which lies in the job's copy of the project and goes with it"
        remedy = "Write run.dir=/shared/…, or hand the run over with masters-ray submit."
        yield Complaint("run.dir", "a whole path that every node sees", found, remedy)


def directory(context: CheckContext) -> Findings:
    """run.dir holds no other run, none that is under way, no damaged records."""
    held = RunDirectory(context.config)
    held.look_at_lock()
    if held.file("journal.json").exists():
        read_json(held.file("journal.json"))
    if held.finished:
        yield f"{held.root} holds this run, finished: run would only write its report again"


def reuse(context: CheckContext) -> Findings:
    """Directories of rollout.reuse hold stores."""
    if context.config.rollout.reuse:
        from masters_ray.pipeline.rollouts import stores_in

        for folder in context.config.rollout.reuse:
            stores_in(folder)
    yield from ()
