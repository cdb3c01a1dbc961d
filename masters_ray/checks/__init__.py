"""What is checked before anything expensive starts: ``load`` for commands that go on, ``validate`` for all there is.

A check is a function of a CheckContext. It yields complaints, which refuse the configuration, and remarks, which are
printed. All checks of a table run in its order, and all complaints are raised together.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from masters_ray.checks import machine, pair, paths, prompts, rows
from masters_ray.checks.context import CheckContext, Findings, NotChecked
from masters_ray.config import Config, read
from masters_ray.errors import Complaint, ConfigError
from masters_ray.progress import say


@dataclass(frozen=True)
class Check:
    """One row of the tables below; the function's docstring says what it checks."""

    name: str
    run: Callable[[CheckContext], Findings]
    needs: tuple[str, ...] = ()
    """Prefixes of keys: the check is skipped when an earlier table has complained about such a key."""


_RUN = ("run.", "rollout.store")
QUICK = (
    Check("data files", paths.data_files),
    Check("checkpoints", pair.located),
    Check("student", pair.student),
    Check("lengths", pair.lengths),
    Check("teachers", pair.teachers),
    Check("stores", paths.addresses),
    Check("job", paths.not_in_a_copy),
)
"""Data files, headers of checkpoints, addresses: takes seconds, needs no torch."""
THOROUGH = (
    Check("run directory", paths.directory, _RUN),
    Check("stores to take over", paths.reuse, ("rollout.reuse",)),
    Check("placement", machine.placed),
    Check("training rows", rows.train, ("data.train", "data.max")),
    Check("held-out rows", rows.held_out, ("data.held_out", "data.max")),
    Check("overlap", rows.overlap),
    Check("prompts", prompts.prompts),
    Check("stages", rows.stages),
    Check("room", machine.room, _RUN),
    Check("memory", machine.memory, _RUN),
    Check("GPUs", machine.gpus),
    Check("online iterations", rows.online_iterations, ("",)),
)


def load(file: str | Path, overrides: list[str] | None = None) -> Config:
    """The configuration, checked by itself and by ``QUICK``. Raises ConfigError with every complaint of both kinds."""
    context = _checked(file, overrides or [], all_rows=False)
    if context.complaints:
        raise ConfigError(context.complaints)
    return context.config


def validate(file: str | Path, overrides: list[str], *, all_rows: bool) -> str:
    """Run the checks of both tables. all_rows: read all rows of the data, not the first ones. Returns what was not
    checked, "" for nothing. Raises ConfigError with every complaint."""
    context = _checked(file, overrides, all_rows=all_rows)
    near = machine.nearest(Path(context.config.run.dir or "."))
    beside = near if all_rows and near.is_dir() and os.access(near, os.W_OK) else None  # /tmp may be too small
    with tempfile.TemporaryDirectory(prefix=".masters-validate-", dir=beside, ignore_cleanup_errors=True) as scratch:
        context.scratch = Path(scratch)
        context.complaints += _complaints(THOROUGH, context)
    if context.complaints:
        raise ConfigError(context.complaints)
    if absent := " and ".join(name for name in context.config.models if name not in context.models):
        context.not_checked.append(f"{absent}: not downloaded yet, and not checked")
    return "; ".join(context.not_checked)


def _checked(file: str | Path, overrides: list[str], *, all_rows: bool) -> CheckContext:
    """The configuration and the complaints of QUICK. Raises ConfigError when the file cannot be read."""
    config, complaints = read(file, overrides)
    context = CheckContext(config=config, all_rows=all_rows, complaints=complaints)
    known = context.keys()
    context.complaints += [one for one in _complaints(QUICK, context) if one.where not in known]
    context.complained = context.keys()
    return context


def _complaints(checks: Sequence[Check], context: CheckContext) -> list[Complaint]:
    """Run the checks; remarks are printed."""
    complaints = []
    for check in checks:
        for found in check.run(context) if context.clean(*check.needs) else ():
            if isinstance(found, Complaint):
                complaints.append(found)
            elif isinstance(found, NotChecked):
                context.not_checked.append(found)
            else:
                say(found)
    return list(dict.fromkeys(complaints))
