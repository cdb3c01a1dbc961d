"""The broker between the learner, which needs fresh groups, and the rollouts, which need its weights."""

import itertools
import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow as pa
import ray
from ray.exceptions import RayTaskError

from masters_ray.errors import LearnerError, MastersError, WeightsGoneError
from masters_ray.method.schedule import version_for
from masters_ray.weight_sync.stream import Invitation
from masters_ray.weight_sync.student_weights import StudentWeights


@dataclass(frozen=True, kw_only=True)
class Order:
    iteration: int
    weights: StudentWeights
    students: Mapping[int, str]
    """Version → digest of those published before the learner was resumed: their rows stay valid."""
    start: int  # number of the learner's start that gave the order


class WeightRequest(NamedTuple):
    """Request of a replica, whose engine has ``ranks`` workers, to be sent a version."""

    number: int
    version: int
    ranks: int


class RolloutBroker:
    """Passes versions of the student to the rollouts, and groups to the learner; a Ray actor, called concurrently.

    The plan decides which version writes for which iteration, not timing (``schedule.version_for``). Iterations that a
    resumed learner has not done are ordered again. With turns, an order is given only when every worker of the learner
    waits for its iteration, and no worker continues before ``deliver`` returns the order.

    Nobody waits forever: ``begin`` and ``take`` have deadlines, rollouts and the sender of weights ask with patience,
    and a replica's ``fetch`` ends with an answer of the sender, the learner's next ``begin``, or ``fail``.
    """

    def __init__(
        self, online: Sequence[int], max_staleness: int, max_wait_seconds: float, turns_of: int | None = None
    ) -> None:
        """online: numbers of the iterations. turns_of: the learner's workers if learner and rollouts take turns."""
        self._online = sorted(online)
        self._max_staleness, self._max_wait, self._turns_of = max_staleness, max_wait_seconds, turns_of
        self._changed = threading.Condition()  # guards the fields below
        self._failure = ""
        self._at_work = False  # with turns: an order was given and not yet returned
        self._start = 0  # counts the learner's starts: a call from an earlier start comes from a worker that is gone
        self._numbers = itertools.count()
        self._restart(None, {})

    def _restart(self, learned: int | None, students: Mapping[int, str]) -> None:
        self._start += 1
        self._learned, self._students = learned, students
        self._weights: dict[int, StudentWeights] = {}
        self._rows: dict[int, pa.Table | None] = {}  # None: the iteration ended without any
        self._deadlines: dict[int, float] = {}
        self._waiting = Counter[int]()  # iteration → number of workers that wait for it
        self._requests = deque[WeightRequest]()
        self._invitations: dict[int, Invitation | None] = {}  # by the request's number

    def begin(self, learned: int | None, students: Mapping[int, str]) -> None:
        """Registers a start of the learner after ``learned`` iterations; it must then publish every version that
        ``schedule.version_for`` names. learned=None: with turns, before the workers load. students: ``Order.students``.
        With turns, waits until an order of the previous start is returned. Raises LearnerError when that takes longer
        than max_wait_seconds, or when the rollouts have failed."""
        with self._changed:
            self._check()
            self._restart(learned, students)
            self._wait(lambda: not self._at_work, self._max_wait)
            if self._at_work:
                raise self._never_back("the start before")

    def put_piece(self, piece: bytes) -> list[Any]:
        """Puts a piece into the object store, where it lives as long as this actor; returns [its reference]."""
        return [ray.put(piece)]

    def publish(self, weights: StudentWeights) -> None:
        """Adds a version, its pieces from ``put_piece``. Raises LearnerError when the rollouts have failed."""
        with self._changed:
            self._check()
            self._weights[weights.version] = weights
            self._tell()

    def fetch(self, version: int, ranks: int) -> Invitation:
        """Asks the learner for a version; returns the invitation to its transfer. Raises WeightsGoneError when learner
        or version are gone, LearnerError when it cannot send."""
        with self._changed:
            number = next(self._numbers)
            self._requests.append(WeightRequest(number=number, version=version, ranks=ranks))
            self._wait(lambda: number in self._invitations)
            invitation = self._invitations.pop(number, None)
        if invitation is None:
            raise WeightsGoneError(f"version {version} of the student is gone with the learner that had it")
        return invitation

    def next_request(self, patience: float) -> WeightRequest | None:
        """Returns the next request for the learner to serve; None when there is none for ``patience`` seconds."""
        with self._changed:
            return self._requests.popleft() if self._changed.wait_for(lambda: self._requests, patience) else None

    def invite(self, request: WeightRequest, invitation: Invitation | None) -> None:
        """Answers a request of a replica. invitation: None when the learner does not have the version."""
        with self._changed:
            self._invitations[request.number] = invitation
            self._changed.notify_all()

    def next_order(self, patience: float) -> Order | None:
        """Returns the order for the first iteration without rows, once its version is published and with turns all
        workers wait for it; None when that takes longer than ``patience`` seconds."""
        with self._changed:
            found = self._changed.wait_for(self._first_order, timeout=patience)
            if found is not None:
                self._at_work = self._turns_of is not None
            return found

    def wanted(self, order: Order) -> bool:
        """Returns whether the order is for the current start, its deadline (if set) has not passed, nothing failed."""
        with self._changed:
            in_time = time.monotonic() < self._deadlines.get(order.iteration, math.inf)
            return not self._failure and order.start == self._start and in_time

    def deliver(self, order: Order, groups: pa.Table | None) -> None:
        """Hands in the rows of an order, None when they were not made in time, and with turns returns the order. Rows
        for an earlier start of the learner or an iteration that has ended are dropped."""
        with self._changed:
            self._at_work = False
            if order.start == self._start:
                self._rows.setdefault(order.iteration, groups)
            self._tell()

    def take(self, iteration: int) -> pa.Table | None:
        """Waits for the iteration's rows, the same for every worker; None when they do not come within max_wait_seconds
        or, with turns, until the order is returned. Raises LearnerError when the rollouts have failed, or have not
        returned the order after another max_wait_seconds."""
        with self._changed:
            start = self._start
            deadline = self._deadlines.setdefault(iteration, time.monotonic() + self._max_wait)
            self._waiting[iteration] += 1
            self._wait(lambda: iteration in self._rows, max(0.0, deadline - time.monotonic()))
            if start == self._start:  # working engines hold the memory that the learner needs: wait until they sleep
                self._wait(lambda: iteration in self._rows or not self._at_work, self._max_wait)
            if start != self._start:
                raise LearnerError(f"iteration {iteration} was waited for by a worker that is gone")
            self._waiting[iteration] -= 1
            if self._at_work and iteration not in self._rows:
                raise self._never_back(f"iteration {iteration}")
            rows = self._rows.setdefault(iteration, None)
            self._tell()
            return rows

    def forget(self, iteration: int) -> None:
        """Drops the rows of all iterations up to this one: the learner has taken the step."""
        with self._changed:
            self._rows |= dict.fromkeys(number for number in self._online if number <= iteration)

    def fail(self, reason: str) -> None:
        """Ends all waiting and later calls with ``reason``: rollouts, or the sending of weights, have failed."""
        with self._changed:
            self._failure = reason
            self._changed.notify_all()

    def _wait(self, found: Callable[[], bool], seconds: float | None = None) -> None:
        """Waits for ``found`` or the learner's restart. Raises LearnerError when the rollouts have failed."""
        start = self._start
        self._changed.notify_all()
        self._changed.wait_for(lambda: found() or self._failure or start != self._start, seconds)
        self._check()

    def _check(self) -> None:
        if self._failure:
            raise LearnerError(self._failure)

    def _never_back(self, of: str) -> LearnerError:
        return LearnerError(
            f"learner and rollouts take turns, and the rollouts of {of} did not stop within {self._max_wait:g} s after "
            "they were to. Raise rollout.max_wait_seconds or lower rollout.batch_rows; the same command goes on from "
            "the last checkpoint."
        )

    def _pending(self) -> dict[int, int]:
        learned = math.inf if self._learned is None else self._learned
        left = [number for number in self._online if number > learned and number not in self._rows]
        return {number: version_for(number, self._max_staleness, self._learned or 0) for number in left}

    def _tell(self) -> None:
        """Drops versions that no pending iteration needs, and wakes all waiting calls."""
        needed = self._pending().values()
        self._weights = {version: one for version, one in self._weights.items() if version in needed}
        self._changed.notify_all()

    def _first_order(self) -> Order | None:
        pending = self._pending()
        iteration = min(pending, default=0)
        weights = self._weights.get(pending.get(iteration, -1))
        if weights is None or (self._turns_of and (self._at_work or self._waiting[iteration] < self._turns_of)):
            return None
        return Order(iteration=iteration, weights=weights, students=self._students, start=self._start)


def ask(broker: Any, method: str, *arguments: Any) -> Any:
    """Calls a RolloutBroker actor's method and returns the result. Raises the MastersError that it raises."""
    try:
        return ray.get(getattr(broker, method).remote(*arguments))
    except RayTaskError as error:
        if isinstance(error.cause, MastersError):
            raise error.cause from error
        raise
