"""What is checked before anything expensive starts: ``load`` for commands that go on, ``validate`` for all there is.

A check is a function over what is looked at. It yields complaints, which refuse the configuration, and remarks; all
checks run, in the tables' order, and all complaints come together.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from masters_ray.checks import machine, pair, prompts, rows, run
from masters_ray.checks.look import Findings, Look, Unseen
from masters_ray.config import Config, read
from masters_ray.errors import Complaint, ConfigError
from masters_ray.progress import say


@dataclass(frozen=True)
class Check:
    """A function whose docstring says what it looks at."""

    name: str
    look: Callable[[Look], Findings]
    needs: tuple[str, ...] = ()
    """Beginnings of keys; skipped when the configuration, its files or checkpoints were complained of by one."""


_RUN = ("run.", "rollout.store")
FIRST = (
    Check("data files", run.data_files),
    Check("checkpoints", pair.located),
    Check("student", pair.student),
    Check("lengths", pair.lengths),
    Check("teachers", pair.teachers),
    Check("stores", run.addresses),
    Check("job", run.not_in_a_copy),
)
"""Files, and headers of checkpoints: in seconds, without torch."""
REST = (
    Check("run directory", run.directory, _RUN),
    Check("stores to take over", run.reuse, ("rollout.reuse",)),
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
    """The configuration, checked by itself and by ``FIRST``. Raises ConfigError with every complaint of both kinds."""
    look = _looked(file, overrides or [], whole=False)
    if look.complaints:
        raise ConfigError(look.complaints)
    return look.config


def validate(file: str | Path, overrides: list[str], *, whole: bool) -> str:
    """Run all checks, which start nothing; whole: on all rows. Returns what was not looked at, "" for nothing. Raises
    ConfigError with every complaint."""
    look = _looked(file, overrides, whole=whole)
    near = machine.nearest(Path(look.config.run.dir or "."))
    beside = near if whole and near.is_dir() and os.access(near, os.W_OK) else None  # all rows may be many
    with tempfile.TemporaryDirectory(prefix=".masters-validate-", dir=beside, ignore_cleanup_errors=True) as scratch:
        look.scratch = Path(scratch)
        look.complaints += _complaints(REST, look)
    if look.complaints:
        raise ConfigError(look.complaints)
    if left := " and ".join(f"data.{name}" for name in look.loaded if name in look.more):
        look.unseen.insert(0, f"rows after the first {rows.FIRST} of {left} were not looked at (--all)")
    if absent := " and ".join(name for name in look.config.models if name not in look.models):
        look.unseen.append(f"{absent}: not downloaded yet, and not looked at")
    return "; ".join(look.unseen)


def _looked(file: str | Path, overrides: list[str], *, whole: bool) -> Look:
    """Raises ConfigError when the file cannot be read."""
    config, complaints = read(file, overrides)
    look = Look(config=config, whole=whole, complaints=complaints)
    known = look.keys()
    look.complaints += [one for one in _complaints(FIRST, look) if one.where not in known]
    look.wrong = look.keys()
    return look


def _complaints(checks: Sequence[Check], look: Look) -> list[Complaint]:
    """Says the remarks."""
    complaints = []
    for check in checks:
        for found in check.look(look) if look.sound(*check.needs) else ():
            if isinstance(found, Complaint):
                complaints += [] if found in complaints else [found]
            elif isinstance(found, Unseen):
                look.unseen.append(found)
            else:
                say(found)
    return complaints
