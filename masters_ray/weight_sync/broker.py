"""Where a learner that needs fresh groups and the rollouts that need its weights meet, while training runs."""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray
from ray.exceptions import RayTaskError

from masters_ray.errors import LearnerError, WeightsGoneError
from masters_ray.method.schedule import version_for
from masters_ray.weight_sync.stream import Invitation
from masters_ray.weight_sync.student_weights import StudentWeights


@dataclass(frozen=True, kw_only=True)
class Order:
    """An online iteration whose groups are wanted now, and the student that writes for it."""

    iteration: int
    weights: StudentWeights
    students: Mapping[int, str]
    """Version → digest of the students that this learner was before it went on: what they wrote is good."""
    start: int
    """Which of the learner's starts it is for."""


@dataclass(frozen=True, kw_only=True)
class WeightRequest:
    """A replica wants to be sent a version."""

    number: int
    version: int
    ranks: int
    """Workers of its engine."""


class RolloutBroker:
    """Hands versions of the student to the rollouts and groups to the learner; a Ray actor, called by both at once.

    Which version writes for which iteration follows from the plan alone, not from who is faster: iteration n is written
    by version n − 1 − max_staleness, or the first one that this learner has if that is later. What a learner that goes
    on after a kill has not reached is wanted again.

    Learner and rollouts may take turns: then an order is given when every worker of the learner waits for its
    iteration, and none of them goes on before that order is brought back.
    """

    def __init__(
        self, online: Sequence[int], max_staleness: int, max_wait_seconds: float, turns_of: int | None = None
    ) -> None:
        """online: the iterations that want fresh groups. turns_of: the learner's workers, if they and the rollouts take
        turns."""
        self._online = sorted(online)
        self._max_staleness, self._max_wait, self._turns_of = max_staleness, max_wait_seconds, turns_of
        self._changed = threading.Condition()
        """Held for every look at the fields below."""
        self._failure: str | None = None
        self._at_work = False
        """An order was given in turns and is not brought back."""
        self._start = 0
        """Counts the learner's starts: a worker of an earlier one is gone, though it may still seem to wait."""
        self._numbers = itertools.count()
        self._restart(None, {})

    def _restart(self, learned: int | None, students: Mapping[int, str]) -> None:
        self._start += 1
        self._learned, self._students = learned, students
        self._weights: dict[int, StudentWeights] = {}
        self._rows: dict[int, pa.Table | None] = {}
        """Iteration → its groups; None when it is over without any."""
        self._deadlines: dict[int, float] = {}
        self._waiting: Counter[int] = Counter()
        """Iteration → workers that wait for it."""
        self._requests: deque[WeightRequest] = deque()
        self._invitations: dict[int, Invitation | None] = {}
        """By the number of the request."""

    def begin(self, learned: int | None, students: Mapping[int, str]) -> None:
        """The learner starts, or goes on, after so many iterations, and will publish every ``schedule.version_for``;
        None: in turns, its workers are about to be started. students: as ``Order.students``.

        In turns returns when an order that was given to those before is brought back. Raises LearnerError when that
        takes longer than max_wait_seconds, or when the rollouts have failed."""
        with self._changed:
            self._check()
            self._restart(learned, students)
            self._wait(lambda: not self._at_work, self._max_wait)
            if self._at_work:
                raise LearnerError(self._never_back("the start before"))

    def keep(self, piece: bytes) -> list[Any]:
        """A reference, in a list, to what lives as long as this actor does: longer than the worker that sends it."""
        return [ray.put(piece)]

    def publish(self, weights: StudentWeights) -> list[int]:
        """A version of the student; its pieces are from ``keep``, if it has any. Returns the versions that still write
        for an iteration. Raises LearnerError when the rollouts have failed."""
        with self._changed:
            self._check()
            self._weights[weights.version] = weights
            self._tell()
            return sorted(self._weights)

    def fetch(self, version: int, ranks: int) -> Invitation:
        """Where the learner sends a version to the replica that asks. ranks: workers of its engine. Raises
        WeightsGoneError when the learner that had it is gone or no longer has it, LearnerError when it cannot send."""
        with self._changed:
            number = next(self._numbers)
            self._requests.append(WeightRequest(number=number, version=version, ranks=ranks))
            self._wait(lambda: number in self._invitations)
            invitation = self._invitations.pop(number, None)
        if invitation is None:
            raise WeightsGoneError(f"version {version} of the student is gone with the learner that had it")
        return invitation

    def next_request(self, patience: float) -> WeightRequest | None:
        """What the learner shall send next; None when nobody asks for ``patience`` seconds."""
        with self._changed:
            return self._requests.popleft() if self._changed.wait_for(lambda: self._requests, patience) else None

    def invite(self, request: WeightRequest, invitation: Invitation | None) -> None:
        """Where the learner sends what a replica asked for; None: it does not have that version."""
        with self._changed:
            self._invitations[request.number] = invitation
            self._changed.notify_all()

    def next_order(self, patience: float) -> Order | None:
        """The first iteration that is not answered yet, once its writer's weights are there; None when that takes
        longer than ``patience`` seconds."""
        with self._changed:
            found = self._changed.wait_for(self._first_order, timeout=patience)
            if found is not None:
                self._at_work = self._turns_of is not None
            return found

    def wanted(self, order: Order) -> bool:
        """In turns: whether somebody waits for the order and max_wait_seconds are not over."""
        with self._changed:
            in_time = time.monotonic() < self._deadlines.get(order.iteration, math.inf)
            return self._failure is None and order.start == self._start and in_time

    def deliver(self, order: Order, groups: pa.Table | None) -> None:
        """The rows of an iteration; dropped when nobody waits for them any more. In turns this brings the order back;
        None: they are not made in time."""
        with self._changed:
            self._at_work = False
            if order.start == self._start:
                self._rows.setdefault(order.iteration, groups)
            self._tell()

    def take(self, iteration: int) -> pa.Table | None:
        """The iteration's rows, waited for; None when they were not there after max_wait_seconds, or in turns when the
        rollouts stopped after them. Every worker of the learner gets the same. Raises LearnerError when the rollouts
        have failed, or do not stop within another max_wait_seconds."""
        with self._changed:
            start = self._start
            deadline = self._deadlines.setdefault(iteration, time.monotonic() + self._max_wait)
            self._waiting[iteration] += 1
            self._wait(lambda: iteration in self._rows, max(0.0, deadline - time.monotonic()))
            if start == self._start:  # engines at work hold what the learner needs to go on: it waits until they sleep
                self._wait(lambda: iteration in self._rows or not self._at_work, self._max_wait)
            if start != self._start:
                raise LearnerError(f"iteration {iteration} was waited for by a worker that is gone")
            self._waiting[iteration] -= 1
            if self._at_work and iteration not in self._rows:
                raise LearnerError(self._never_back(f"iteration {iteration}"))
            rows = self._rows.setdefault(iteration, None)
            self._tell()
            return rows

    def forget(self, iteration: int) -> None:
        """The learner has taken its step: rows of iterations up to this one are not asked for again."""
        with self._changed:
            self._rows |= dict.fromkeys(number for number in self._online if number <= iteration)

    def fail(self, reason: str) -> None:
        """There will be no more rollouts, or no more weights for them; whoever waits is told why."""
        with self._changed:
            self._failure = reason
            self._changed.notify_all()

    def _wait(self, found: Callable[[], bool], seconds: float | None = None) -> None:
        """Until something is found, or the learner starts anew; for so long at most. Raises LearnerError when the
        rollouts have failed."""
        start = self._start
        self._changed.notify_all()
        self._changed.wait_for(lambda: found() or self._failure is not None or start != self._start, seconds)
        self._check()

    def _check(self) -> None:
        if self._failure is not None:
            raise LearnerError(self._failure)

    def _never_back(self, of: str) -> str:
        return (
            f"learner and rollouts take turns, and the rollouts of {of} did not stop within {self._max_wait:g} s after "
            "they were to. Raise rollout.max_wait_seconds, make rollout.batch_rows smaller, or look for an engine that "
            "hangs; the same command goes on from the last checkpoint."
        )

    def _version(self, number: int) -> int:
        return version_for(number, self._max_staleness, self._learned or 0)

    def _pending(self) -> list[int]:
        if self._learned is None:
            return []
        return [number for number in self._online if number > self._learned and number not in self._rows]

    def _tell(self) -> None:
        """Drop versions that write for no iteration any more; wake whoever waits."""
        needed = {self._version(number) for number in self._pending()}
        self._weights = {version: one for version, one in self._weights.items() if version in needed}
        self._changed.notify_all()

    def _first_order(self) -> Order | None:
        pending = self._pending()
        weights = self._weights.get(self._version(pending[0])) if pending else None
        if weights is None:
            return None
        if self._turns_of is not None and (self._at_work or self._waiting[pending[0]] < self._turns_of):
            return None
        return Order(iteration=pending[0], weights=weights, students=self._students, start=self._start)


def ask(broker: Any, method: str, *arguments: Any) -> Any:
    """What a RolloutBroker actor answers the learner. Raises LearnerError with its words."""
    try:
        return ray.get(getattr(broker, method).remote(*arguments))
    except RayTaskError as error:
        raise LearnerError(str(error.cause)) from error
