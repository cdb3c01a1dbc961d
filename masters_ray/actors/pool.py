"""Where replicas are spawned, handed work, and stopped: the only place that makes Ray actors of hosts."""

from __future__ import annotations

import queue
import threading
import time
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import (
    ActorUnavailableError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    RayTaskError,
)

from masters_ray.actors.host import Host, HostSpec, Role
from masters_ray.errors import MastersError, ReplicaError, ReplicaLostError
from masters_ray.masks import MaskReport

_SECONDS_TO_END = 20
_SECONDS_BETWEEN_LOOKS = 0.5
_REFUSALS_OF_THE_DEAD = 3
"""A look that is under way when a process dies is refused as if there were no other one to come."""
_NO_PLACE = object()
_CALLS_AT_ONCE = 3
"""Calls under way on one replica: their requests share the engine's running batch, so that it is full while one call
begins and another one ends."""


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """How many processes of one kind, and what Ray reserves for each."""

    spec: HostSpec
    replicas: int
    cpus: float
    gpus: float
    """GPUs of each tensor-parallel rank."""
    max_restarts: int = 0
    """How often a process that died is started again."""

    @property
    def gpus_per_replica(self) -> float:
        return self.gpus * self.spec.tensor_parallel


class Pool:
    """The replicas of one role. Calls from several threads run at once, a few on each replica.

    A replica whose process dies is started again by Ray, up to ``max_restarts`` times, and gets no call before it is
    ready; what it was doing is told as ReplicaLostError, and whoever called decides whether to call again.
    """

    def __init__(self, role: Role, actors: list[Any]) -> None:
        self.role = role
        self._actors = actors
        self._mask_ratio: float | None = None
        self._idle: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._closed = threading.Event()
        self._places = len(actors) * _CALLS_AT_ONCE
        self._lock = threading.Lock()
        for actor in actors * _CALLS_AT_ONCE:
            self._idle.put(actor)

    @property
    def calls_at_once(self) -> int:
        """Calls that find a place before the next one waits."""
        return self._places

    def mask(self, ratio: float) -> list[MaskReport]:
        """Every replica's weights masked at ``ratio``, from now on and whoever takes its place; nothing else may be
        running on the pool."""
        self._mask_ratio = ratio
        futures = [self._begin(actor, "mask", ratio) for actor in self._actors]
        return [self._result(future, "mask") for future in futures]

    def call(self, method: str, *arguments: Any) -> Any:
        """``method`` on a replica that has a place free; waits for one. Raises ReplicaLostError when its process dies
        on the way, ReplicaError, or the MastersError raised there."""
        actor = self._idle.get()
        try:
            if actor is None:
                raise ReplicaError(f"{self.role}.{method}: all replicas died, more often than rollout.max_restarts")
            if self._closed.is_set():
                raise ReplicaError(f"{self.role}.{method}: the replicas were stopped")
            return self._result(self._begin(actor, method, *arguments), method)
        except ReplicaLostError:
            if not self._ready_again(actor):
                actor = self._lost_place()
            raise
        finally:
            if actor is not _NO_PLACE:
                self._idle.put(actor)

    def close(self) -> None:
        """From now on calls are refused, also those that wait for a replica."""
        self._closed.set()

    def wait_until_idle(self) -> None:
        """Return when no call is under way any more: what runs on after Ray is shut down would start another Ray."""
        try:
            actors = [self._idle.get(timeout=_SECONDS_TO_END) for _ in range(self.calls_at_once)]
        except queue.Empty:
            raise ReplicaError(
                f"{self.role}: a call did not end in {_SECONDS_TO_END} s after its replica was stopped"
            ) from None
        for actor in actors:
            self._idle.put(actor)

    def _ready_again(self, actor: Any) -> bool:
        """Wait until Ray has started the process again; False when it will not."""
        refusals = 0
        while not self._closed.is_set() and refusals < _REFUSALS_OF_THE_DEAD:
            try:
                if ray.get(actor.ready.remote()):
                    return True
            except ActorUnavailableError:
                pass
            except RayError:
                refusals += 1
            time.sleep(_SECONDS_BETWEEN_LOOKS)
        return self._closed.is_set()

    def _lost_place(self) -> Any:
        """One place less; the last one is left to those who wait, as None."""
        with self._lock:
            if self._places == 1:
                return None
            self._places -= 1
            return _NO_PLACE

    def _begin(self, actor: Any, method: str, *arguments: Any) -> Any:
        return actor.call.remote(self.role, method, *arguments, mask_ratio=self._mask_ratio)

    def _result(self, future: Any, method: str) -> Any:
        try:
            return ray.get(future)
        except RayError as error:
            raise replica_error(error, f"{self.role}.{method}") from error


class Replicas:
    """All pools of a run; stops its actors when the block is left."""

    def __init__(self, deployments: list[Deployment]) -> None:
        """Spawn every process and wait until each has loaded its model. Raises ReplicaError when one cannot."""
        self._actors: list[Any] = []
        self.pools: dict[Role, Pool] = {}
        by_role: dict[Role, list[Any]] = {}
        try:
            for deployment in deployments:
                for _ in range(deployment.replicas):
                    actor = _spawn(deployment)
                    self._actors.append(actor)
                    for role in deployment.spec.roles:
                        by_role.setdefault(role, []).append(actor)
            try:
                ray.get([actor.ready.remote() for actor in self._actors])
            except RayError as error:
                raise replica_error(error, "a replica could not start") from error
        except BaseException:
            self.close()
            raise
        self.pools = {role: Pool(role, actors) for role, actors in by_role.items()}

    def __enter__(self) -> Replicas:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop every process; what it was doing is dropped."""
        for pool in self.pools.values():
            pool.close()
        for actor in self._actors:
            ray.kill(actor)
        self._actors = []
        for pool in self.pools.values():
            pool.wait_until_idle()


def replica_error(error: RayError, doing: str) -> MastersError:
    """What went wrong inside or to an actor, in this package's own terms, with the cause's words."""
    if isinstance(error, RayTaskError) and isinstance(error.cause, MastersError):
        return error.cause
    if isinstance(error, RayTaskError):
        return ReplicaError(f"{doing}: {type(error.cause).__name__}: {error.cause}")
    if isinstance(error, RayActorError | ObjectLostError | OutOfMemoryError):
        # The text ends with what the process itself raised, if it came that far.
        cause = str(error).strip().splitlines()[-1].strip()
        return ReplicaLostError(f"{doing}: its process died: {cause}")
    return ReplicaError(f"{doing}: {type(error).__name__}: {error}")


def _spawn(deployment: Deployment) -> Any:
    options: dict[str, Any] = {
        "num_cpus": deployment.cpus,
        "num_gpus": deployment.gpus_per_replica,
        "max_restarts": deployment.max_restarts,
        "max_concurrency": _CALLS_AT_ONCE * len(deployment.spec.roles) + 1,
        "runtime_env": {"env_vars": _environment(deployment)},
    }
    return ray.remote(Host).options(**options).remote(deployment.spec)


def _environment(deployment: Deployment) -> dict[str, str]:
    environment = {"VLLM_LOGGING_LEVEL": "WARNING", "TOKENIZERS_PARALLELISM": "false", "VLLM_NO_USAGE_STATS": "1"}
    if deployment.gpus == 0:
        environment |= {
            # One busy thread per reserved CPU: replicas that share cores are many times slower with more.
            "OMP_NUM_THREADS": str(max(1, int(deployment.cpus))),
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            # The engine in the actor's own process: one process less to start and to feed.
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0" if deployment.spec.tensor_parallel == 1 else "1",
        }
        if deployment.spec.engine.enforce_eager:
            environment["TORCH_COMPILE_DISABLE"] = "1"
    return environment
