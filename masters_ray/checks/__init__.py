"""Checks before anything expensive starts: ``load`` runs the quick ones for each command, ``validate`` runs all.

A check is a function of a CheckContext. It yields complaints, which refuse the configuration, and remarks, which are
printed. All checks of a table run in its order, and all complaints are raised together.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from masters_ray.checks import pair, places, prompts, rows
from masters_ray.checks.context import CheckContext, Findings, NotChecked, guarded
from masters_ray.config import Config, read
from masters_ray.errors import ConfigError
from masters_ray.progress import say


@dataclass(frozen=True)
class Check:
    """A row of the tables below. ``run``'s docstring says what it checks; a MastersError that it raises becomes a
    complaint with this ``where`` and ``expected``."""

    where: str
    expected: str
    run: Callable[[CheckContext], Findings]


QUICK = (
    Check("data", "files that can be read", rows.files),
    Check("checkpoints", "whole ones", pair.located),
    Check("student.checkpoint", "one that can be trained", pair.student),
    Check("checkpoints", "readable configurations", pair.lengths),
    Check("student.checkpoint", "the same family as the teacher's", pair.teachers),
    Check("run.dir", "a whole path", places.not_in_a_copy),
)
"""Checks of data files and checkpoints' headers; they take seconds and need no torch."""
THOROUGH = (
    Check("run.dir", "a directory and a store that this run can use", places.directory),
    Check("rollout.reuse", "directories with stores", places.reuse),
    Check("placement", "a cluster", places.placed),
    Check("data.train", "questions", partial(rows.source, name="train")),
    Check("rollout.store", "rows of this configuration", places.recipes),
    Check("data.held_out", "questions", partial(rows.source, name="held_out")),
    Check("data.held_out", "questions", rows.overlap),
    Check("prompts", "prompts", prompts.prompts),
    Check("schedule", "questions for every stage", rows.stages),
    Check("rollout.store", "a place to write", places.room),
    Check("rollout.online_fraction", "iterations", rows.online_iterations),
)


def load(file: str | Path, overrides: list[str] | None = None) -> Config:
    """Loads a configuration and runs the ``QUICK`` checks. Raises ConfigError with the complaints of both."""
    config, complaints = read(file, overrides or [])
    context = CheckContext(config=config, complaints=complaints)
    _run(QUICK, context)
    for one in context.not_checked:
        say(one)
    if complaints:
        raise ConfigError(complaints)
    return config


def validate(file: str | Path, overrides: list[str], *, all_rows: bool) -> str:
    """Runs the checks of both tables. all_rows: read all rows of the data, not only the first 200. Returns what was not
    checked, or "". Raises ConfigError with every complaint."""
    config, complaints = read(file, overrides)
    context = CheckContext(config=config, complaints=complaints, all_rows=all_rows)
    near = places.nearest(Path(config.run.dir or "."))
    beside = near if all_rows and near.is_dir() and os.access(near, os.W_OK) else None  # /tmp may be too small
    with tempfile.TemporaryDirectory(prefix=".masters-validate-", dir=beside, ignore_cleanup_errors=True) as scratch:
        context.scratch = Path(scratch)
        _run(QUICK, context)
        _run(THOROUGH, context)
    if complaints:
        raise ConfigError(complaints)
    return "; ".join(context.not_checked)


def _run(checks: Sequence[Check], context: CheckContext) -> None:
    """Adds complaints and what was not checked to the context; prints remarks. Leaves out a complaint about a key, or
    the section of a key, that had a complaint before this table: it is a consequence."""
    known = [complaint.where for complaint in context.complaints]
    for check in checks:
        for found in guarded(check.where, check.expected, check.run(context)):
            if isinstance(found, NotChecked):
                context.not_checked.append(found)
            elif isinstance(found, str):
                say(found)
            elif found not in context.complaints and not any(key.startswith(found.where) for key in known):
                context.complaints.append(found)
