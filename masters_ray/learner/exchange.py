"""Where a learner that needs fresh groups and the rollouts that need its weights meet, while training runs."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray

from masters_ray.errors import LearnerError
from masters_ray.schedule import version_for
from masters_ray.weights import StudentWeights, WireTensor


@dataclass(frozen=True, kw_only=True)
class Order:
    """An online iteration whose groups are wanted now, and the student that writes for it."""

    iteration: int
    weights: StudentWeights
    students: Mapping[int, str]
    """Version → digest of the students that this learner was before it was started or went on: what they wrote is
    good."""
    start: int
    """Which of the learner's starts it is for."""


class Exchange:
    """Hands versions of the student to the rollouts and groups to the learner; a Ray actor, called by both at once.

    Which version writes for which iteration follows from the plan alone, not from who is faster: iteration n is written
    by version n − 1 − max_staleness, or the first one that this learner has if that is later. What a learner that goes
    on after a kill has not reached is wanted again.
    """

    def __init__(self, online: Sequence[int], max_staleness: int, max_wait_seconds: float) -> None:
        """online: the iterations that want fresh groups."""
        self._online = sorted(online)
        self._max_staleness, self._max_wait = max_staleness, max_wait_seconds
        self._changed = threading.Condition()
        """Held for every look at the fields below."""
        self._learned: int | None = None
        self._students: Mapping[int, str] = {}
        self._start = 0
        """Counts the learner's starts: a worker of an earlier one is gone, though it may still seem to wait."""
        self._weights: dict[int, StudentWeights] = {}
        self._groups: dict[int, pa.Table] = {}
        self._given_up: set[int] = set()
        self._deadlines: dict[int, float] = {}
        self._failure: str | None = None

    def begin(self, learned: int, students: Mapping[int, str]) -> None:
        """The learner starts, or goes on, after so many iterations, and will publish every ``schedule.version_for``.
        students: as ``Order.students``."""
        with self._changed:
            self._check()
            self._learned, self._students = learned, students
            self._start += 1
            self._weights, self._groups, self._deadlines = {}, {}, {}
            self._given_up = set()
            self._changed.notify_all()

    def keep(self, piece: list[WireTensor]) -> list[Any]:
        """A reference, in a list, to tensors that live as long as this actor does: longer than the worker that sends
        them."""
        return [ray.put(piece)]

    def publish(self, weights: StudentWeights) -> None:
        """A version of the student; its pieces are from ``keep``. Raises LearnerError when the rollouts have failed."""
        with self._changed:
            self._check()
            self._weights[weights.version] = weights
            self._drop_weights()
            self._changed.notify_all()

    def next_order(self, patience: float) -> Order | None:
        """The first iteration that is not answered yet, once its writer's weights are there; None when that takes
        longer than ``patience`` seconds."""
        with self._changed:
            self._changed.wait_for(lambda: self._first_order() is not None, timeout=patience)
            return self._first_order()

    def deliver(self, order: Order, groups: pa.Table) -> None:
        """The rows of an iteration; dropped when nobody waits for them any more."""
        with self._changed:
            if order.iteration not in self._given_up and order.start == self._start:
                self._groups[order.iteration] = groups
                self._drop_weights()
                self._changed.notify_all()

    def take(self, iteration: int) -> pa.Table | None:
        """The iteration's rows, waited for; None when they were not there after max_wait_seconds. Every worker of the
        learner gets the same. Raises LearnerError when the rollouts have failed."""
        with self._changed:
            start = self._start
            deadline = self._deadlines.setdefault(iteration, time.monotonic() + self._max_wait)
            self._changed.wait_for(
                lambda: (
                    self._failure is not None
                    or start != self._start
                    or iteration in self._groups
                    or iteration in self._given_up
                ),
                timeout=max(0.0, deadline - time.monotonic()),
            )
            self._check()
            if start != self._start:
                raise LearnerError(f"iteration {iteration} was waited for by a worker that is gone")
            if iteration not in self._groups:
                self._given_up.add(iteration)
                self._drop_weights()
                self._changed.notify_all()
            return self._groups.get(iteration)

    def forget(self, iteration: int) -> None:
        """The learner has taken its step: rows of iterations up to this one are not asked for again."""
        with self._changed:
            self._groups = {number: rows for number, rows in self._groups.items() if number > iteration}
            self._given_up |= {number for number in self._online if number <= iteration}

    def fail(self, reason: str) -> None:
        """There will be no more rollouts; whoever waits is told why."""
        with self._changed:
            self._failure = reason
            self._changed.notify_all()

    def _check(self) -> None:
        if self._failure is not None:
            raise LearnerError(self._failure)

    def _version(self, number: int) -> int:
        return version_for(number, self._max_staleness, self._learned or 0)

    def _pending(self) -> list[int]:
        if self._learned is None:
            return []
        done = self._groups.keys() | self._given_up
        return [number for number in self._online if number > self._learned and number not in done]

    def _drop_weights(self) -> None:
        """Versions that write for no iteration any more."""
        needed = {self._version(number) for number in self._pending()}
        self._weights = {version: one for version, one in self._weights.items() if version in needed}

    def _first_order(self) -> Order | None:
        pending = self._pending()
        weights = self._weights.get(self._version(pending[0])) if pending else None
        if weights is None:
            return None
        return Order(iteration=pending[0], weights=weights, students=self._students, start=self._start)
