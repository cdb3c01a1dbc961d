"""Where replicas are spawned and stopped: the only place that makes Ray actors of hosts."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError

from masters_ray.errors import MastersError, ReplicaError, ReplicaLostError
from masters_ray.progress import say
from masters_ray.replicas.actor import ReplicaActor, ReplicaSpec, Role, remember_ratio
from masters_ray.replicas.devices import DEVICES
from masters_ray.replicas.pool import CALLS_AT_ONCE, SECONDS_TO_END, Pool, ready_again, replica_error


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """How many processes of one kind, and what Ray reserves for each."""

    spec: ReplicaSpec
    replicas: int
    """Started before anything is done."""
    cpus: float
    gpus: float
    """GPUs of each tensor-parallel rank."""
    may_join: int = 0
    """Replicas that are added while others work, when there is room for them."""
    max_restarts: int = 0
    """How often a process that died is started again."""
    devices: tuple[str, ...] | None = None
    """When the learner has the CPUs and GPUs and the replicas use them in turn: for each replica its GPUs as
    ``devices.assigned`` gives them; Ray reserves nothing then."""

    @property
    def gpus_per_replica(self) -> float:
        return self.gpus * self.spec.tensor_parallel


class Replicas:
    """All pools of a run; stops its actors when the block is left.

    Each deployment's ``replicas`` are there from the start. Those that ``may_join`` are asked of the cluster then, and
    each joins its pools whenever it is ready, or is told of and left out when it cannot be.
    """

    def __init__(self, deployments: list[Deployment], host: type = ReplicaActor) -> None:
        """Spawn every process and wait until each of the first ones has loaded its model. host: the class that runs in
        them. Raises ReplicaError when one of those cannot."""
        self._host = host
        self._actors: list[Any] = []
        self._roles: list[tuple[Role, ...]] = []
        """Of each of them."""
        self._joining: list[threading.Thread] = []
        self._closed = threading.Event()
        self.pools: dict[Role, Pool] = {}
        try:
            self.pools = self._start(deployments)
            # Not sooner: they could take the room that another deployment's first replicas need. In turn, so that what
            # room there is goes to all deployments.
            turns = range(max((one.may_join for one in deployments), default=0))
            for deployment in (one for turn in turns for one in deployments if turn < one.may_join):
                self._add(deployment)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Replicas:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop every process; what it was doing is dropped. Raises ReplicaError when something does not end."""
        self._closed.set()
        for pool in self.pools.values():
            pool.close()
        for actor in self._actors:
            ray.kill(actor)
        self._actors, self._roles = [], []
        for thread in self._joining:
            thread.join(SECONDS_TO_END)
            if thread.is_alive():
                raise ReplicaError(f"the {thread.name} did not end in {SECONDS_TO_END} s after it was stopped")
        self._joining = []
        for pool in self.pools.values():
            pool.wait_until_idle()

    def _start(self, deployments: list[Deployment]) -> dict[Role, Pool]:
        """The pools of the first replicas."""
        by_role: dict[Role, list[Any]] = {}
        for mask in (one.spec.mask for one in deployments if one.spec.mask is not None):
            remember_ratio(mask.ratio)
        for deployment in deployments:
            for number in range(deployment.replicas):
                actor = self._spawned(deployment, number)
                for role in deployment.spec.roles:
                    by_role.setdefault(role, []).append(actor)
                if deployment.spec.sleeps or 0 < deployment.gpus < 1:
                    # While an engine measures how much of a GPU is free, no other one may load or fall asleep.
                    self._wait_for_all()
        self._wait_for_all()
        return {
            role: Pool(
                role,
                actors,
                may_join=sum(one.may_join for one in deployments if role in one.spec.roles),
                masked=any(one.spec.mask is not None for one in deployments if role in one.spec.roles),
            )
            for role, actors in by_role.items()
        }

    def _wait_for_all(self) -> None:
        started = {actor.ready.remote(): roles for actor, roles in zip(self._actors, self._roles, strict=True)}
        waiting = list(started)
        while waiting:
            [ready], waiting = ray.wait(waiting)
            try:
                ray.get(ready)
            except RayError as error:
                raise replica_error(error, f"a replica of {' and '.join(started[ready])} could not start") from error

    def _add(self, deployment: Deployment) -> None:
        actor, name = (
            self._spawned(deployment, deployment.replicas),
            f"added replica of {' and '.join(deployment.spec.roles)}",
        )
        thread = threading.Thread(target=self._join, args=(deployment, actor, name), name=name, daemon=True)
        self._joining.append(thread)
        thread.start()

    def _join(self, deployment: Deployment, actor: Any, name: str) -> None:
        """Bring an actor into its pools when it is ready; on a thread of its own."""
        outside = [self.pools[role] for role in deployment.spec.roles]
        try:
            self._wait_for(actor)
            while outside:
                outside[0].join(actor)
                outside.pop(0)
            say(f"an {name} has joined")
        except MastersError as error:
            ray.kill(actor)
            if not self._closed.is_set():
                say(f"an {name} is left out, and the others go on: {error}")
        finally:
            for pool in outside:
                pool.expect_one_less()

    def _wait_for(self, actor: Any) -> None:
        try:
            ray.get(actor.ready.remote())
        except RayError as error:
            lost = replica_error(error, "it could not start")
            if not isinstance(lost, ReplicaLostError) or not ready_again(actor, self._closed):
                raise lost from error

    def _spawned(self, deployment: Deployment, number: int) -> Any:
        actor = _spawn(self._host, deployment, number)
        self._actors.append(actor)
        self._roles.append(deployment.spec.roles)
        return actor


def _spawn(host: type, deployment: Deployment, number: int) -> Any:
    variables = environment(deployment)
    if deployment.devices is not None:
        # Whatever the cluster was started with, Ray must not hide all GPUs from a process that reserves none.
        variables |= {DEVICES: deployment.devices[number], "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
    options: dict[str, Any] = {
        "num_cpus": deployment.cpus if deployment.devices is None else 0,
        "num_gpus": deployment.gpus_per_replica if deployment.devices is None else 0,
        "max_restarts": deployment.max_restarts,
        # Beside calls: a look whether it is ready.
        "max_concurrency": CALLS_AT_ONCE * len(deployment.spec.roles) + 1,
        "runtime_env": {"env_vars": variables},
    }
    return ray.remote(host).options(**options).remote(deployment.spec)


def environment(deployment: Deployment) -> dict[str, str]:
    """The variables of a replica's process."""
    variables = {"VLLM_LOGGING_LEVEL": "WARNING", "TOKENIZERS_PARALLELISM": "false", "VLLM_NO_USAGE_STATS": "1"}
    if deployment.gpus == 0:
        variables |= {
            # One busy thread per reserved CPU: replicas that share cores are many times slower with more.
            "OMP_NUM_THREADS": str(max(1, int(deployment.cpus))),
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            # The engine in the actor's own process: one process less to start and to feed.
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0" if deployment.spec.tensor_parallel == 1 else "1",
        }
        if deployment.spec.engine.enforce_eager:
            variables["TORCH_COMPILE_DISABLE"] = "1"
    return variables
