"""Checks before anything expensive starts: ``load`` runs the quick ones for each command, ``validate`` runs all. A
check is a function of a CheckContext: it adds complaints, which refuse the configuration, and prints remarks. All
checks run in the order of their table, and all complaints are raised together."""

import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from masters_ray.checks import pair, places, prompts, rows
from masters_ray.checks.context import CheckContext
from masters_ray.config import Config, read
from masters_ray.errors import ConfigError
from masters_ray.progress import say

Table = Sequence[tuple[str, str, Callable[[CheckContext], None]]]
"""(where, expected, check): an error that a check raises becomes a complaint with this where and expected."""

QUICK: Table = (
    ("data", "files that can be read", rows.files),
    ("checkpoints", "whole ones", pair.located),
    ("checkpoints", "readable configurations", pair.models),
    ("student.checkpoint", "the same family as the teacher's", pair.teachers),
    ("run.dir", "a whole path", places.not_in_a_copy),
    ("tracker", "packages and keys", places.trackers),
)
"""Checks of data files and checkpoints' headers; they take seconds and need no torch."""
THOROUGH: Table = (
    ("rollout.store", "a place to write", places.written),
    ("run.dir", "a directory and a store that this run can use", places.directory),
    ("rollout.reuse", "directories with stores", places.reuse),
    ("placement", "a cluster", places.placed),
    ("data.train", "questions", partial(rows.source, name="train")),
    ("rollout.store", "rows of this configuration", places.recipes),
    ("data.held_out", "questions", partial(rows.source, name="held_out")),
    ("prompts", "prompts", prompts.prompts),
    ("run.dir", "room", places.room),
)


def load(file: str | Path, overrides: list[str] | None = None) -> Config:
    """Loads a configuration and runs the ``QUICK`` checks. Raises ConfigError with the complaints of both."""
    config, complaints = read(file, overrides)
    context = CheckContext(config=config, complaints=complaints)
    _run(QUICK, context)
    for one in context.not_checked:
        say(one)
    return config


def validate(file: str | Path, overrides: list[str], *, all_rows: bool) -> str:
    """Runs all checks. all_rows: read all rows of the data, not only the first 200. Returns what was not checked, or
    "". Raises ConfigError with every complaint."""
    config, complaints = read(file, overrides)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        context = CheckContext(config=config, complaints=complaints, all_rows=all_rows, scratch=Path(scratch))
        _run((*QUICK, *THOROUGH), context)
    return "; ".join(context.not_checked)


def _run(table: Table, context: CheckContext) -> None:
    for where, expected, check in table:
        with context.guarded(where, expected):
            check(context)
    if context.complaints:
        raise ConfigError(context.complaints)
