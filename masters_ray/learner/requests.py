"""Replicas' requests for a version of the student, on their way to the learner that has it."""

from __future__ import annotations

import itertools
import threading
from dataclasses import dataclass
from typing import Any

from masters_ray.errors import ReplicaLostError, WeightsGoneError


@dataclass(frozen=True, kw_only=True)
class Request:
    """A replica wants to be sent a version."""

    number: int
    version: int
    replica: Any
    """Its actor."""
    process: str
    """Identifies the actor's process: one that was started again must be connected to anew."""
    ranks: int
    """Tensor-parallel ones of its engine."""


class Requests:
    """A queue that replicas wait in until they were served; used by several threads."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        """Held for every look at the fields below."""
        self._numbers = itertools.count()
        self._waiting: dict[int, Request] = {}
        self._taken: set[int] = set()
        self._refused: dict[int, str] = {}
        self._start = 0
        """Counts the learner's starts."""

    def ask(self, version: int, replica: Any, process: str, ranks: int) -> None:
        """Return when the version was sent.

        Raises WeightsGoneError when the learner that had it is gone or no longer has it, ReplicaLostError with the
        learner's words when sending failed: the model may be half old, half new then.
        """
        with self._changed:
            start, number = self._start, next(self._numbers)
            self._waiting[number] = Request(
                number=number, version=version, replica=replica, process=process, ranks=ranks
            )
            self._changed.notify_all()
            self._changed.wait_for(lambda: number not in self._waiting or self._start != start)
            self._waiting.pop(number, None)
            self._taken.discard(number)
            refused = self._refused.pop(number, None)
        if start != self._start or refused == "":
            raise WeightsGoneError(f"version {version} of the student is gone with the learner that had it")
        if refused is not None:
            raise ReplicaLostError(f"version {version} of the student could not be sent: {refused}")

    def next(self, patience: float) -> Request | None:
        """The first one that nobody serves yet; None when there is none for ``patience`` seconds."""
        with self._changed:
            self._changed.wait_for(lambda: self._first() is not None, timeout=patience)
            found = self._first()
            if found is not None:
                self._taken.add(found.number)
            return found

    def answer(self, number: int, refused: str | None) -> None:
        """A request was served, or not: why, or "" when its version is not there."""
        with self._changed:
            if self._waiting.pop(number, None) is not None and refused is not None:
                self._refused[number] = refused
            self._changed.notify_all()

    def restart(self) -> None:
        """A learner starts anew: what an earlier one was asked for will not come."""
        with self._changed:
            self._start += 1
            self._changed.notify_all()

    def _first(self) -> Request | None:
        return next((one for number, one in self._waiting.items() if number not in self._taken), None)
