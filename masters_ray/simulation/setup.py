"""What a simulation is told and what it says: a run with online iterations, as costs, replicas and limits."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from masters_ray.errors import Complaint, ConfigError

STUDENT = "student"
"""The pool whose replicas take over the learner's weights; those of all others stay as they are."""


@dataclass(frozen=True, kw_only=True)
class Call:
    """A call that every batch makes of a pool."""

    pool: str
    method: str
    seconds_per_call: float
    """Seconds of a replica that works on nothing else, whatever the batch."""
    seconds_per_question: float
    """The same, more for each question of the batch."""

    @property
    def name(self) -> str:
        """As online.jsonl has it. Example: ``teacher.answer``."""
        return f"{self.pool}.{self.method}"

    def seconds(self, questions: int) -> float:
        """Seconds of a replica that works on nothing else."""
        return self.seconds_per_call + questions * self.seconds_per_question


@dataclass(frozen=True, kw_only=True)
class Pool:
    """The replicas of one role."""

    replicas: int
    calls_at_once: int = 3
    """Calls that one replica works on at the same time; they share its speed."""

    @property
    def places(self) -> int:
        """Calls that find a place before the next one waits."""
        return self.replicas * self.calls_at_once


@dataclass(frozen=True, kw_only=True)
class Setup:
    """A run as the simulation sees it. Raises ConfigError with every complaint when it makes no sense."""

    iterations: int
    """Optimizer steps."""
    online: tuple[int, ...]
    """Numbers of the online iterations, ascending, from 1."""
    groups_per_step: int
    """Questions of an iteration."""
    batch_rows: int
    """Questions of a batch; an iteration's last may have fewer."""
    max_staleness: int
    """Optimizer steps by which the writing student's weights are older than those that the iteration starts with."""
    max_wait_seconds: float
    """Seconds that the learner waits for an iteration's groups before it takes stored rows; may be infinite."""
    calls: tuple[Call, ...]
    """What a batch goes through, one after the other; calls of one method that follow one another are made at the same
    time, as both models' answers are."""
    pools: Mapping[str, Pool]
    """By name; the pool named ``student`` loads the learner's weights."""
    learner_seconds: float
    """Of one optimizer step, when the learner has a core or a device of its own."""
    publish_seconds: float
    """That the learner needs to hand over one version of its weights; it takes no step then."""
    load_seconds: float
    """That a replica of the student needs to take over a version, before its first call with it."""
    start_seconds: float
    """Until engines and learner stand, once; nothing else happens then."""
    cores: float | None = None
    """What the cores that the learner and all replicas share are worth while all are busy, as times the work of one
    busy process; each can use one. With 1.6 one busy process is not slowed down, and two get on at 0.8. None:
    everything has its own."""
    colocated: bool = False
    """Engines sleep on the learner's own devices: replicas work only while the learner waits for groups."""
    wake_seconds: float = 0.0
    """Colocated: for each turn of the engines, from when the learner waits to when they work."""

    @property
    def rounds(self) -> list[tuple[Call, ...]]:
        """The calls that are made at the same time."""
        return [tuple(calls) for _, calls in itertools.groupby(self.calls, key=lambda call: call.method)]

    def __post_init__(self) -> None:
        if complaints := [*_of_numbers(self), *_of_iterations(self), *_of_calls(self)]:
            raise ConfigError(complaints)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a run took."""

    wall_seconds: float
    learner_utilisation: float
    """Fraction of the wall time in which the learner is at a step; publishing does not count."""
    waited_seconds: float
    """That the learner waited for groups, waking included."""
    pool_utilisation: Mapping[str, float]
    """By pool: fraction of the wall time in which a replica works on a call or loads weights; mean of its replicas."""
    mean_age: float | None
    """Of the fresh iterations, in optimizer steps; None without any."""
    largest_age: int | None
    """The same for the oldest."""
    fresh: int
    """Online iterations that were learned from their own groups."""
    stored: int
    """Online iterations whose groups did not come in time."""
    syncs: int
    """Versions that the learner handed over."""


def _of_numbers(setup: Setup) -> Iterator[Complaint]:
    for name in ("iterations", "groups_per_step", "batch_rows"):
        if getattr(setup, name) < 1:
            yield _complaint(name, "at least 1", getattr(setup, name), "Raise it.")
    if setup.max_staleness < 0:
        yield _complaint("max_staleness", "at least 0", setup.max_staleness, "0 is strictly on-policy.")
    if not (math.isfinite(setup.learner_seconds) and setup.learner_seconds > 0):
        yield _complaint("learner_seconds", "seconds above 0", setup.learner_seconds, "Give a measured step's.")
    for name in ("publish_seconds", "load_seconds", "start_seconds", "wake_seconds"):
        if not _is_cost(getattr(setup, name)):
            yield _complaint(name, "seconds of 0 or more", getattr(setup, name), "0 leaves it out.")
    if not setup.max_wait_seconds >= 0:
        yield _complaint("max_wait_seconds", "seconds of 0 or more", setup.max_wait_seconds, "inf waits for ever.")
    if setup.cores is not None and not setup.cores > 0:
        yield _complaint("cores", "above 0, or None", setup.cores, "None gives everything cores of its own.")


def _of_iterations(setup: Setup) -> Iterator[Complaint]:
    wanted = sorted({number for number in setup.online if 1 <= number <= setup.iterations})
    if list(setup.online) != wanted:
        expected = f"ascending numbers from 1 to {setup.iterations}, each once"
        yield _complaint("online", expected, setup.online, "Sort them and leave out what lies outside.")
    if setup.online and not setup.calls:
        yield _complaint("calls", "at least one with online iterations", "none", "Name what makes a group.")


def _of_calls(setup: Setup) -> Iterator[Complaint]:
    for call in setup.calls:
        if call.pool not in setup.pools:
            known = ", ".join(sorted(setup.pools)) or "none"
            yield _complaint(call.name, "a call of a pool that there is", call.pool, f"Pools: {known}.")
        if not (_is_cost(call.seconds_per_call) and _is_cost(call.seconds_per_question)):
            found = f"{call.seconds_per_call} and {call.seconds_per_question}"
            yield _complaint(call.name, "seconds of 0 or more", found, "Give measured ones.")
    for name, pool in setup.pools.items():
        if pool.replicas < 1 or pool.calls_at_once < 1:
            found = f"{pool.replicas} with {pool.calls_at_once}"
            yield _complaint(f"pools.{name}", "at least 1 replica with 1 call at once", found, "Raise them.")


def _is_cost(seconds: float) -> bool:
    return math.isfinite(seconds) and seconds >= 0


def _complaint(where: str, expected: str, found: object, remedy: str) -> Complaint:
    text = str(found)
    return Complaint(
        where=f"simulation: {where}",
        expected=expected,
        found=text if len(text) <= 60 else text[:60] + "…",
        remedy=remedy,
    )
