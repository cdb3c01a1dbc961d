"""The replicas of one role: handed a few calls at a time, waited for when their process died, masked alike."""

from __future__ import annotations

import dataclasses
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import ray
from ray.exceptions import (
    ActorUnavailableError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    RayTaskError,
)

from masters_ray.config import Engine
from masters_ray.data.texts import cut
from masters_ray.errors import MastersError, ReplicaError, ReplicaLostError
from masters_ray.masks import MaskReport
from masters_ray.progress import say
from masters_ray.replicas.actor import Expected, Role, remember_ratio
from masters_ray.weight_sync.student_weights import StudentWeights

CALLS_AT_ONCE = 3
"""Calls under way on one replica: their requests share the engine's running batch, so that it is full while one call
begins and another one ends."""
SECONDS_TO_END = 20
_SECONDS_BETWEEN_LOOKS = 0.5
_REFUSALS_OF_THE_DEAD = 3
"""A look that is under way when a process dies is refused as if there were no other one to come."""
_REPEATS = 3
"""How often a call that may be made again is, when the replica's process dies each time."""
_EXCEPTION = re.compile(r"[\w.]*(?:Error|Exception|Exit|Interrupt)\b")
"""The first line of what a traceback ends with."""
_NO_HELP = "For further information visit"
_LONGEST_CAUSE = 700


@dataclass(eq=False)
class _Replica:
    """An actor, and what it is doing."""

    actor: Any
    calls: int = 0
    """Under way on it."""
    away: bool = False
    """Its process died and is started again."""


class _Told(NamedTuple):
    result: Any


class Pool:
    """The replicas of one role. Calls from several threads run at once, a few on each replica; more replicas may join.

    A replica whose process dies is started again by Ray, up to ``max_restarts`` times, and gets no call before it is
    ready; what it was doing is told as ReplicaLostError, and whoever called decides whether to call again. Once the
    pool is masked, or holds a version of the student, a process that joins or is started again gets the same weights
    before its first call, and CheckpointError or WeightSyncError tells of one whose weights are then others.
    """

    def __init__(self, role: Role, actors: list[Any], *, may_join: int = 0, masked: bool = False) -> None:
        """may_join: replicas that may be added later. masked: they wait until the pool is masked."""
        self.role = role
        self._replicas = [_Replica(actor) for actor in actors]
        self._may_join = may_join
        self._expected: Expected | None = None
        self._under_way = 0
        self._changed = threading.Condition()
        """Held for every look at the fields above."""
        self._masking = threading.Lock()
        """Nobody joins while a mask is put on."""
        self._open_to_join = threading.Event()
        if not masked:
            self._open_to_join.set()
        self._closed = threading.Event()

    @property
    def calls_at_once(self) -> int:
        """Calls that find a place before the next one waits, with the replicas that are there now."""
        return CALLS_AT_ONCE * len(self._replicas)

    @property
    def most_calls_at_once(self) -> int:
        """The same with all replicas that may still join."""
        with self._changed:
            return CALLS_AT_ONCE * (len(self._replicas) + self._may_join)

    def mask(self, ratio: float) -> list[MaskReport]:
        """Every replica's weights masked at ``ratio``, from now on and whoever joins or takes its place; nothing else
        may be running on the pool.

        A replica whose process dies is masked again when it is back. Raises ReplicaLostError when that happens four
        times in a row, ReplicaError when no replica is left.
        """
        with self._masking:
            self._expected = None
            remember_ratio(ratio)
            found: list[MaskReport] = self._everywhere("mask", lambda actor: self._begin(actor, "mask", ratio))
            self._expected = found[0]
        self._open_to_join.set()
        return found

    def hold(self, weights: StudentWeights) -> None:
        """Every replica holds this version of the student, from now on and whoever joins or takes its place; nothing
        else may be running on the pool. Raises as ``mask``, and WeightSyncError when a replica's weights are others."""
        with self._masking:
            self._expected = None
            self._everywhere("hold", lambda actor: actor.hold.remote(weights))
            self._expected = weights

    def sleep(self) -> None:
        """Every replica gives up its GPUs' memory, if it was told that it sleeps, until something is asked of it;
        nothing else may be running on the pool. A replica that is started again counts once it has loaded its model.
        Raises as ``mask``."""
        with self._masking:
            self._everywhere("sleep", lambda actor: actor.sleep.remote())

    def _everywhere(self, method: str, begin: Callable[[Any], Any]) -> list[Any]:
        """What ``begin`` gives on every replica that is left."""
        with self._changed:
            replicas = list(self._replicas)
        futures = [begin(replica.actor) for replica in replicas]
        told = [self._told(*pair, method, begin) for pair in zip(replicas, futures, strict=True)]
        found = [one.result for one in told if one is not None]
        if not found:
            raise self._refusal(method)
        return found

    def call(self, method: str, *arguments: Any) -> Any:
        """``method`` on a replica that has a place free; waits for one. Raises ReplicaLostError when its process dies
        on the way, ReplicaError, or the MastersError raised there.

        An argument may be what ``share`` returned.
        """
        replica = self._take(method)
        try:
            return self._result(self._begin(replica.actor, method, *arguments), method)
        except ReplicaLostError as error:
            if self._closed.is_set():
                raise self._refusal(method) from error
            self._send_away(replica)
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

    def busy_seconds(self) -> list[float]:
        """How long each replica's engine has worked since it was started. Raises ReplicaLostError when a process died
        on the way."""
        with self._changed:
            futures = [replica.actor.busy_seconds.remote() for replica in self._replicas]
        return [self._result(future, "busy_seconds") for future in futures]

    def share(self, thing: Any) -> Any:
        """A reference to stand for ``thing`` as an argument of several calls, so that it is serialised once."""
        return ray.put(thing)

    def join(self, actor: Any) -> None:
        """Add a replica that is ready, masked as the others are; waits for their first mask if they get one. Raises
        CheckpointError when its weights are others then, ReplicaError when it cannot be masked or came too late."""
        self._open_to_join.wait()
        replica = _Replica(actor)
        with self._masking:
            if self._expected is not None and not self._closed.is_set():
                begin = self._as_expected(self._expected)
                if self._told(replica, begin(actor), "join", begin) is None:
                    raise ReplicaLostError(f"{self.role}: its process died while it took in its weights")
            with self._changed:
                if self._closed.is_set():
                    raise self._refusal("join")
                self._replicas.append(replica)
                self._may_join -= 1
                self._changed.notify_all()

    def expect_one_less(self) -> None:
        """A replica that might have joined will not."""
        with self._changed:
            self._may_join -= 1
            self._changed.notify_all()

    def close(self) -> None:
        """From now on calls are refused, also those that wait for a replica."""
        with self._changed:
            self._closed.set()
            self._changed.notify_all()
        self._open_to_join.set()

    def wait_until_idle(self) -> None:
        """Return when no call is under way any more: what runs on after Ray is shut down would start another Ray."""
        with self._changed:
            if not self._changed.wait_for(lambda: not self._under_way, timeout=SECONDS_TO_END):
                raise ReplicaError(
                    f"{self.role}: a call did not end in {SECONDS_TO_END} s after its replica was stopped"
                )

    def _take(self, method: str) -> _Replica:
        with self._changed:
            self._changed.wait_for(
                lambda: self._closed.is_set() or self._least_busy() or not (self._replicas or self._may_join)
            )
            replica = self._least_busy()
            if replica is None or self._closed.is_set():
                raise self._refusal(method)
            replica.calls += 1
            self._under_way += 1
            return replica

    def _least_busy(self) -> _Replica | None:
        free = [one for one in self._replicas if not one.away and one.calls < CALLS_AT_ONCE]
        return min(free, key=lambda one: one.calls, default=None)

    def _refusal(self, method: str) -> ReplicaError:
        if self._closed.is_set():
            return ReplicaError(f"{self.role}.{method}: the replicas were stopped")
        return ReplicaError(f"{self.role}.{method}: all replicas died, more often than rollout.max_restarts")

    def _send_away(self, replica: _Replica) -> None:
        """No call for this replica until Ray has started its process again."""
        with self._changed:
            if replica.away or self._closed.is_set():
                return
            replica.away = True
            self._under_way += 1
        threading.Thread(target=self._fetch_back, args=(replica,), name=f"{self.role} back", daemon=True).start()

    def _fetch_back(self, replica: _Replica) -> None:
        ready = False
        try:
            ready = ready_again(replica.actor, self._closed)
        finally:
            if not ready:
                self._remove(replica)
            with self._changed:
                replica.away = False
                self._under_way -= 1
                self._changed.notify_all()

    def _remove(self, replica: _Replica) -> None:
        """This replica will not be back."""
        with self._changed:
            if self._closed.is_set() or replica not in self._replicas:
                return
            self._replicas.remove(replica)
            self._changed.notify_all()
            say(
                f"{self.role}: a replica died more often than rollout.max_restarts and is left out; "
                f"{len(self._replicas)} are left"
            )

    def _as_expected(self, expected: Expected) -> Callable[[Any], Any]:
        """What gives a replica the weights that the others have."""
        if isinstance(expected, MaskReport):
            return lambda actor: self._begin(actor, "mask", expected.ratio)
        return lambda actor: actor.hold.remote(expected)

    def _told(self, replica: _Replica, future: Any, method: str, begin: Callable[[Any], Any]) -> _Told | None:
        """What a replica answers, asked again when its process is back after it died; None when it died for good."""
        repeats = 0
        while True:
            try:
                return _Told(self._result(future, method))
            except ReplicaLostError:
                if repeats == _REPEATS:
                    raise
            if not ready_again(replica.actor, self._closed):
                self._remove(replica)
                return None
            repeats += 1
            future = begin(replica.actor)

    def _begin(self, actor: Any, method: str, *arguments: Any) -> Any:
        return actor.call.remote(self.role, method, *arguments, expected=self._expected)

    def _result(self, future: Any, method: str) -> Any:
        try:
            return ray.get(future)
        except RayError as error:
            raise replica_error(error, f"{self.role}.{method}") from error


def ready_again(actor: Any, stopped: threading.Event) -> bool:
    """Wait until Ray has started an actor's process again; False when it will not, or when all are stopped."""
    refusals = 0
    while not stopped.is_set() and refusals < _REFUSALS_OF_THE_DEAD:
        try:
            if ray.get(actor.ready.remote()):
                return True
        except ActorUnavailableError:
            pass
        except RayError:
            refusals += 1
        stopped.wait(_SECONDS_BETWEEN_LOOKS)
    return False


def replica_error(error: RayError, doing: str) -> MastersError:
    """What went wrong inside or to an actor, in this package's own terms, with the cause's words."""
    if isinstance(error, RayTaskError) and isinstance(error.cause, MastersError):
        return error.cause
    if isinstance(error, RayTaskError):
        return ReplicaError(f"{doing}: {type(error.cause).__name__}: {error.cause}")
    if isinstance(error, RayActorError | ObjectLostError | OutOfMemoryError):
        told = _raised(str(error))
        if told.startswith(MastersError.__module__):  # it refused by itself
            return ReplicaError(f"{doing}: {told.partition(': ')[2]}")
        return ReplicaLostError(f"{doing}: its process died: {told}")
    return ReplicaError(f"{doing}: {type(error).__name__}: {error}")


def _raised(text: str) -> str:
    """What a process that died raised itself, if it came that far: the text ends with it. Options of vLLM are named by
    the keys of the configuration."""
    lines = text.strip().splitlines()
    starts = [number for number, line in enumerate(lines) if _EXCEPTION.match(line)]
    told = " ".join(line.strip() for line in lines[starts[-1] if starts else -1 :] if _NO_HELP not in line)
    for field in dataclasses.fields(Engine):
        told = told.replace("--" + field.name.replace("_", "-"), f"engine.{field.name}")
    return cut(told, _LONGEST_CAUSE)
