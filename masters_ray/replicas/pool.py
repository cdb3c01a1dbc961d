"""The pool of a role's replicas: spreads calls, waits for replicas that restart, keeps their weights equal."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any, Literal

import ray
from ray.exceptions import ObjectLostError, OutOfMemoryError, RayActorError, RayError, RayTaskError

from masters_ray.errors import MastersError, ReplicaError, ReplicaLostError
from masters_ray.method.masks import MaskReport
from masters_ray.progress import say
from masters_ray.replicas.actor import Expected, remember_ratio
from masters_ray.replicas.processes import Role
from masters_ray.weight_sync.student_weights import StudentWeights

CALLS_AT_ONCE = 3
"""Concurrent calls per replica; their requests share the engine's batch, which stays full as calls begin and end."""
_SECONDS_TO_END = 20
_REPEATS = 3
_WHATEVER_DIES = {"max_task_retries": -1, "retry_exceptions": [ReplicaLostError]}
"""Options with which Ray repeats a call each time it restarts the process."""


@dataclass(eq=False)
class PooledReplica:
    actor: Any
    state: Literal["joining", "ready", "away"] = "ready"
    """joining: its process starts for the first time while others work; away: it died and is being restarted."""
    calls: int = 0
    """Calls under way."""


class Pool:
    """The replicas of one role; thread-safe.

    Ray restarts a replica whose process dies, up to ``max_restarts`` times; its calls raise ReplicaLostError. After
    ``mask`` or ``hold``, a process that joins or restarts loads the same weights before its first call. A replica that
    cannot start, or joins with different weights, is left out. One that restarts with different weights raises
    CheckpointError or WeightSyncError at its next call. No replica gets a call before it is ready.
    """

    def __init__(self, role: Role, actors: list[Any]) -> None:
        """actors: ReplicaActor handles whose models are loaded."""
        self.role = role
        self._replicas = [PooledReplica(actor) for actor in actors]
        self._expected: Expected | None = None
        self._lost = "none was started"
        """Why the last replica was left out."""
        self._under_way = 0
        """Threads that wait for an answer of a replica."""
        self._closed = False
        self._changed = threading.Condition()
        """Guards the fields above."""

    @property
    def most_calls_at_once(self) -> int:
        """Calls that run before the next one waits, with joining replicas counted."""
        with self._changed:
            return CALLS_AT_ONCE * len(self._replicas)

    def mask(self, ratio: float) -> list[MaskReport]:
        """Masks every replica's weights at ``ratio``, also of later ones; returns their reports. See ``everywhere``."""
        self._expected = None
        remember_ratio(ratio)
        found: list[MaskReport] = self.everywhere("mask", ratio)
        with self._changed:
            self._expected = found[0]
            self._changed.notify_all()
        return found

    def hold(self, weights: StudentWeights) -> None:
        """Makes every replica, also later ones, hold this version of the student. Raises WeightSyncError when a
        replica's weights differ; otherwise as ``everywhere``."""
        self._expected = None
        self.everywhere("ready", weights)
        self._expected = weights

    def sleep(self) -> None:
        """Has every replica free its GPUs' memory, if its spec sleeps, until its next call; see ``everywhere``."""
        self.everywhere("sleep")

    def everywhere(self, method: str, *arguments: Any) -> list[Any]:
        """Calls a method of ReplicaActor on every replica that has joined; returns their results. No other call may be
        under way. Repeats the call on a replica that restarts, and leaves out one that does not. Raises ReplicaError
        when none is left."""
        with self._changed:
            replicas = [one for one in self._replicas if one.state != "joining"]
        asked = [(one, getattr(one.actor, method).options(**_WHATEVER_DIES).remote(*arguments)) for one in replicas]
        found = []
        for replica, future in asked:
            try:
                found.append(self._result(future, method))
            except ReplicaLostError as error:
                self._leave_out(replica, error)
        if not found:
            raise self._refusal(method)
        return found

    def call(self, method: str, *arguments: Any) -> Any:
        """Calls ``method`` of the role on the least busy replica; waits until one is free. Raises ReplicaLostError when
        its process dies, ReplicaError when no replica is left, or the MastersError that the method raises."""
        replica = self._take(method)
        try:
            future = replica.actor.call.remote(self.role, method, *arguments, expected=self._expected)
            return self._result(future, method)
        except ReplicaLostError as error:
            if self._closed:
                raise self._refusal(method) from error
            self._fetch(replica, "away")
            raise
        finally:
            with self._changed:
                replica.calls -= 1
                self._under_way -= 1
                self._changed.notify_all()

    def call_again(self, method: str, *arguments: Any) -> Any:
        """``call``, repeated up to three times when the replica's process dies."""
        for _ in range(_REPEATS):
            try:
                return self.call(method, *arguments)
            except ReplicaLostError as error:
                say(f"{self.role}.{method} is asked again: {error}")
        return self.call(method, *arguments)

    def share(self, thing: Any) -> Any:
        """Returns a reference to ``thing`` to pass to several calls, so that it is serialised once."""
        return ray.put(thing)

    def join(self, actor: Any) -> None:
        """Adds an actor, which takes calls once it is ready."""
        replica = PooledReplica(actor)
        with self._changed:
            self._replicas.append(replica)
        self._fetch(replica, "joining")

    def close(self) -> None:
        """Refuses calls from now on, waiting ones too."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def wait_until_idle(self) -> None:
        """Returns when no call waits any more: after Ray's shutdown it would start a Ray. Raises ReplicaError."""
        with self._changed:
            if not self._changed.wait_for(lambda: not self._under_way, timeout=_SECONDS_TO_END):
                raise ReplicaError(f"{self.role}: a call did not end {_SECONDS_TO_END} s after the last replica")

    def _take(self, method: str) -> PooledReplica:
        with self._changed:
            self._changed.wait_for(lambda: self._closed or not self._replicas or self._free())
            if self._closed or not self._replicas:
                raise self._refusal(method)
            replica = min(self._free(), key=lambda one: one.calls)
            replica.calls += 1
            self._under_way += 1
            return replica

    def _free(self) -> list[PooledReplica]:
        return [one for one in self._replicas if one.state == "ready" and one.calls < CALLS_AT_ONCE]

    def _refusal(self, method: str) -> ReplicaError:
        if self._closed:
            return ReplicaError(f"{self.role}.{method}: the replicas were stopped")
        return ReplicaError(f"{self.role}.{method}: no replica is left (rollout.max_restarts): {self._lost}")

    def _fetch(self, replica: PooledReplica, state: Literal["joining", "away"]) -> None:
        with self._changed:
            if replica.state == state or self._closed:
                return
            replica.state = state
            self._under_way += 1
        threading.Thread(target=self._wait_for, args=(replica,), name=f"{self.role} {state}", daemon=True).start()

    def _wait_for(self, replica: PooledReplica) -> None:
        joins = replica.state == "joining"
        try:
            ready = replica.actor.ready.options(**_WHATEVER_DIES)
            self._result(ready.remote(), "start")
            # The weights of a restarted replica are checked at its next call, which raises if they differ.
            if joins:
                with self._changed:  # compare a joining teacher's weights once the first ones are masked
                    self._changed.wait_for(lambda: self._closed or self._expected or self.role != "teacher")
                self._result(ready.remote(self._expected), "start")
                say(f"{self.role}: a replica has joined")
        except MastersError as error:
            self._leave_out(replica, error)
        finally:
            with self._changed:
                replica.state = "ready"
                self._under_way -= 1
                self._changed.notify_all()

    def _leave_out(self, replica: PooledReplica, error: MastersError) -> None:
        with self._changed:
            if self._closed or replica not in self._replicas:
                return
            self._replicas.remove(replica)
            self._lost = str(error)
            say(f"{self.role}: a replica is left out, {len(self._replicas)} are left: {error}")
            self._changed.notify_all()
        ray.kill(replica.actor)

    def _result(self, future: Any, method: str) -> Any:
        try:
            return ray.get(future)
        except RayError as error:
            raise replica_error(error, f"{self.role}.{method}") from error


def replica_error(error: RayError, doing: str) -> MastersError:
    """Converts a Ray error of an actor's call to a MastersError: the method's own one, ReplicaLostError when the
    process died, otherwise ReplicaError. doing: names the call in the message."""
    if isinstance(error, RayTaskError):
        cause = error.cause
        return cause if isinstance(cause, MastersError) else ReplicaError(f"{doing}: {type(cause).__name__}: {cause}")
    if isinstance(error, RayActorError | ObjectLostError | OutOfMemoryError):
        return ReplicaLostError(f"{doing}: its process died: {str(error).strip().splitlines()[-1]}")
    return ReplicaError(f"{doing}: {type(error).__name__}: {error}")
