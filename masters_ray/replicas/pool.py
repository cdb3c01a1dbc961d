"""The pool of a role's replicas: spreads calls, waits for replicas that restart, keeps their weights equal."""

import threading
from collections import Counter
from typing import Any

import ray
from ray.exceptions import ObjectLostError, OutOfMemoryError, RayActorError, RayError, RayTaskError

from masters_ray.errors import MastersError, ReplicaError, ReplicaLostError
from masters_ray.method.masks import MaskReport
from masters_ray.progress import warn
from masters_ray.replicas.actor import Expected
from masters_ray.replicas.processes import Role
from masters_ray.weight_sync.student_weights import StudentWeights

CALLS_AT_ONCE = 3
"""Concurrent calls per replica; their requests share the engine's batch, which stays full as calls begin and end."""
REPEAT_AFTER_DEATH: dict[str, Any] = {"max_task_retries": -1, "retry_exceptions": [ReplicaLostError]}
"""Options with which Ray repeats a call each time it restarts the process."""
_SECONDS_TO_END = 20


class Pool:
    """The replicas of one role; thread-safe.

    Ray restarts a replica whose process dies, up to ``max_restarts`` times. Its calls raise ReplicaLostError once the
    model is loaded again; a replica that cannot load it is left out. After ``mask`` or ``hold`` a restarted process
    has the same weights before its first call, which raises CheckpointError or WeightSyncError if they differ. No call
    waits forever: it ends when another call ends, or at ``close``."""

    def __init__(self, role: Role, actors: list[Any]) -> None:
        """actors: ReplicaActor handles whose models are loaded."""
        self.role = role
        self._actors = actors
        self._calls = Counter[Any]()  # under way, by actor
        self._restarting = set[Any]()  # actors whose process is being restarted
        self._expected: Expected | None = None
        self._lost = ""  # why the last actor was left out
        self._closed = False
        self._changed = threading.Condition()  # guards the fields above

    @property
    def most_calls_at_once(self) -> int:
        return CALLS_AT_ONCE * len(self._actors)

    def mask(self, ratio: float) -> list[MaskReport]:
        """Masks every replica at ``ratio``, also later processes; returns their reports. See ``everywhere``."""
        found: list[MaskReport] = self.everywhere("mask", ratio)
        self._expected = found[0]
        return found

    def hold(self, weights: StudentWeights) -> None:
        """Has every replica, also later processes, hold this version, or raises WeightSyncError; see ``everywhere``."""
        self.everywhere("hold", weights)
        self._expected = weights

    def sleep(self) -> None:
        """Has every replica free its GPUs' memory, if its spec sleeps, until its next call; see ``everywhere``."""
        self.everywhere("sleep")

    def everywhere(self, method: str, *arguments: Any) -> list[Any]:
        """Calls a method of ReplicaActor on every replica, while no other call is under way; returns their results.
        Repeats it on a replica that restarts; leaves out one that does not. Raises ReplicaError when none is left."""
        asked = {one: getattr(one, method).options(**REPEAT_AFTER_DEATH).remote(*arguments) for one in self._actors}
        found = []
        for actor, future in asked.items():
            try:
                found.append(self._result(future, method))
            except ReplicaLostError as error:
                self._leave_out(actor, error)
        if not found:
            raise self._refusal(method)
        return found

    def call(self, method: str, *arguments: Any) -> Any:
        """Calls ``method`` of the role on the least busy replica; waits until one is free. Raises ReplicaLostError when
        its process dies, ReplicaError when no replica is left, or the MastersError that the method raises."""
        actor = self._take(method)
        try:
            future = actor.call.remote(method, *arguments, expected=self._expected)
            return self._result(future, method)
        except ReplicaLostError as error:
            self._wait_for(actor)
            if self._closed:
                raise self._refusal(method) from error
            raise
        finally:
            with self._changed:
                self._calls[actor] -= 1
                self._changed.notify_all()

    def call_again(self, method: str, *arguments: Any) -> Any:
        """``call``, repeated up to three times when the replica's process dies."""
        for _ in range(3):
            try:
                return self.call(method, *arguments)
            except ReplicaLostError as error:
                warn(f"{self.role}.{method} is asked again: {error}")
        return self.call(method, *arguments)

    def share(self, thing: Any) -> Any:
        """Returns a reference to ``thing`` to pass to several calls, so that it is serialised once."""
        return ray.put(thing)

    def close(self) -> None:
        """Refuses calls from now on, waiting ones too."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def wait_until_idle(self) -> None:
        """Returns when no call is under way: after Ray's shutdown it would start another Ray. Raises ReplicaError."""
        with self._changed:
            if not self._changed.wait_for(lambda: not self._calls.total(), timeout=_SECONDS_TO_END):
                raise ReplicaError(f"{self.role}: a call did not end {_SECONDS_TO_END} s after the last replica")

    def _take(self, method: str) -> Any:
        with self._changed:
            self._changed.wait_for(lambda: self._closed or not self._actors or self._free())
            if self._closed or not self._actors:
                raise self._refusal(method)
            actor = min(self._free(), key=lambda one: self._calls[one])
            self._calls[actor] += 1
            return actor

    def _free(self) -> list[Any]:
        return [one for one in self._actors if one not in self._restarting and self._calls[one] < CALLS_AT_ONCE]

    def _refusal(self, method: str) -> ReplicaError:
        if self._closed:
            return ReplicaError(f"{self.role}.{method}: the replicas were stopped")
        return ReplicaError(f"{self.role}.{method}: no replica is left (rollout.max_restarts): {self._lost}")

    def _wait_for(self, actor: Any) -> None:
        """Returns when the model is loaded in the process that Ray starts in the dead one's place."""
        if actor not in self._restarting and not self._closed:
            warn(f"{self.role}: the process of a replica died; Ray starts another one")
        self._restarting.add(actor)
        try:
            if isinstance(self._expected, MaskReport):  # loads the model so, instead of masking it once more
                start = actor.mask.options(**REPEAT_AFTER_DEATH).remote(self._expected.ratio)
            else:
                start = actor.ready.options(**REPEAT_AFTER_DEATH).remote()
            self._result(start, "start")
        except MastersError as error:
            self._leave_out(actor, error)
        else:
            self._restarting.discard(actor)

    def _leave_out(self, actor: Any, error: MastersError) -> None:
        with self._changed:
            if self._closed or actor not in self._actors:
                return
            self._actors.remove(actor)
            self._lost = str(error)
            warn(f"{self.role}: a replica is left out, {len(self._actors)} are left: {error}")
            self._changed.notify_all()
        ray.kill(actor)

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
