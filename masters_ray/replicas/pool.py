"""The replicas of one role: handed a few calls at a time, waited for when their process died, masked alike."""

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
"""Calls under way on one replica: their requests share the engine's running batch, so that it is full while one call
begins and another one ends."""
_SECONDS_TO_END = 20
_REPEATS = 3
_WHATEVER_DIES = {"max_task_retries": -1, "retry_exceptions": [ReplicaLostError]}
"""Ray makes the call again as often as it starts the process again."""


@dataclass(eq=False)
class PooledReplica:
    actor: Any
    state: Literal["joining", "ready", "away"] = "ready"
    """Joining: its process is started for the first time, while others work. Away: it died and is started again."""
    calls: int = 0
    """Under way on it."""


class Pool:
    """The replicas of one role; may be called from several threads.

    A replica whose process dies is started again by Ray, up to ``max_restarts`` times, and gets no call before it is
    ready; what it was doing ends in ReplicaLostError. Once the pool is masked, or holds a version of the student, a
    process that joins or is started again gets the same weights before its first call. One that cannot start, or joins
    with other weights, is left out; CheckpointError or WeightSyncError tells of one that is back with other weights.
    """

    def __init__(self, role: Role, actors: list[Any]) -> None:
        """actors: with their models loaded."""
        self.role = role
        self._replicas = [PooledReplica(actor) for actor in actors]
        self._expected: Expected | None = None
        self._lost = "none was started"
        """Why the last replica was left out."""
        self._under_way = 0
        """Threads that wait for a replica."""
        self._closed = False
        self._changed = threading.Condition()
        """Held for every look at the fields above."""

    @property
    def most_calls_at_once(self) -> int:
        """Calls that find a place before the next one waits, with all replicas that may still join."""
        with self._changed:
            return CALLS_AT_ONCE * len(self._replicas)

    def mask(self, ratio: float) -> list[MaskReport]:
        """Every replica's weights masked at ``ratio``, from now on; premises and errors of ``everywhere``."""
        self._expected = None
        remember_ratio(ratio)
        found: list[MaskReport] = self.everywhere("mask", ratio)
        with self._changed:
            self._expected = found[0]
            self._changed.notify_all()
        return found

    def hold(self, weights: StudentWeights) -> None:
        """Every replica holds this version of the student, from now on; as ``mask``, and raises WeightSyncError when a
        replica's weights are others."""
        self._expected = None
        self.everywhere("ready", weights)
        self._expected = weights

    def sleep(self) -> None:
        """Every replica gives up its GPUs' memory, if it sleeps at all, until something is asked of it; as ``mask``."""
        self.everywhere("sleep")

    def everywhere(self, method: str, *arguments: Any) -> list[Any]:
        """What a method of ReplicaActor returns on every replica that has joined; no call may be under way. One whose
        process dies is asked again when it is back, and left out when it will not be. Raises ReplicaError when none is
        left."""
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
        """``method`` of the role on a replica that has a place free; waits for one. Raises ReplicaLostError when its
        process dies on the way, ReplicaError, or the MastersError raised there."""
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
        """``call``, made again up to three times when the replica's process dies on the way."""
        for _ in range(_REPEATS):
            try:
                return self.call(method, *arguments)
            except ReplicaLostError as error:
                say(f"{self.role}.{method} is asked again: {error}")
        return self.call(method, *arguments)

    def share(self, thing: Any) -> Any:
        """What stands for ``thing`` as an argument of several calls, so that it is serialised once."""
        return ray.put(thing)

    def join(self, actor: Any) -> None:
        """Have an actor take calls when it is ready."""
        replica = PooledReplica(actor)
        with self._changed:
            self._replicas.append(replica)
        self._fetch(replica, "joining")

    def close(self) -> None:
        """From now on calls are refused, also those that wait for a replica."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def wait_until_idle(self) -> None:
        """Return when nothing is waited for any more: what runs on after Ray is shut down would start another Ray."""
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
            # The weights of one that is back are compared at its next call, whose caller is told if they are others.
            if joins:
                with (
                    self._changed
                ):  # a teacher's weights are compared with those of the first ones, once they are masked
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
    """What went wrong inside or to an actor, in this package's own terms, with the cause's words."""
    if isinstance(error, RayTaskError):
        cause = error.cause
        return cause if isinstance(cause, MastersError) else ReplicaError(f"{doing}: {type(cause).__name__}: {cause}")
    if isinstance(error, RayActorError | ObjectLostError | OutOfMemoryError):
        return ReplicaLostError(f"{doing}: its process died: {str(error).strip().splitlines()[-1]}")
    return ReplicaError(f"{doing}: {type(error).__name__}: {error}")
