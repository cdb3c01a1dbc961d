"""Starts and stops replicas: the only place that makes Ray actors of them."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Self

import ray
from ray.exceptions import RayError

from masters_ray import progress
from masters_ray.errors import ReplicaError
from masters_ray.replicas.actor import ReplicaActor
from masters_ray.replicas.pool import CALLS_AT_ONCE, REPEAT_AFTER_DEATH, Pool, replica_error
from masters_ray.replicas.processes import Role
from masters_ray.replicas.spec import ReplicaSpec


class Replicas:
    """The pools of a set of replicas; a context manager that stops its actors at the end of the block."""

    def __init__(self, specs: Sequence[ReplicaSpec], actor_class: type = ReplicaActor) -> None:
        """Starts all processes and waits until each has loaded its model. Raises ReplicaError when one fails."""
        self._actors: list[Any] = []
        self.pools: dict[Role, Pool] = {}
        by_role: dict[Role, list[Any]] = {}
        loading: dict[Any, tuple[ReplicaSpec, progress.Doing]] = {}
        try:
            for spec, number in ((one, number) for one in specs for number in range(one.count)):
                own = spec if spec.devices is None else replace(spec, devices=(spec.devices[number],))
                actor = ray.remote(actor_class).options(**_options(spec)).remote(own)
                self._actors.append(actor)
                told = progress.Doing(_told(spec, number))
                loading[actor.ready.options(**REPEAT_AFTER_DEATH).remote()] = spec, told
                for role in spec.roles:
                    by_role.setdefault(role, []).append(actor)
                if spec.sleeps or 0 < spec.share < 1:
                    # No other engine may load or sleep while an engine measures how much GPU memory is free.
                    _wait_for_all(loading)
            _wait_for_all(loading)
        except BaseException:
            for _, told in loading.values():
                told.end(told=False)
            self.close()
            raise
        self.pools = {role: Pool(role, actors) for role, actors in by_role.items()}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stops every process and drops its calls. Raises ReplicaError when a call does not end within 20 s."""
        for pool in self.pools.values():
            pool.close()
        for actor in self._actors:
            ray.kill(actor)
        self._actors = []
        for pool in self.pools.values():
            pool.wait_until_idle()


def _options(spec: ReplicaSpec) -> dict[str, Any]:
    variables, reserves = environment(spec), spec.devices is None
    if not reserves:
        # Keeps Ray from hiding all GPUs from a process that reserves none, whatever the cluster was started with.
        variables["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
    return {
        "num_cpus": spec.cpus if reserves else 0,
        "num_gpus": spec.gpus if reserves else 0,
        "max_restarts": spec.max_restarts,
        # One more than the pools' calls, for calls to the process itself (ready, mask, hold, sleep).
        "max_concurrency": CALLS_AT_ONCE * len(spec.roles) + 1,
        "runtime_env": {"env_vars": variables},
    }


def _told(spec: ReplicaSpec, number: int) -> str:
    roles = " and ".join(spec.roles).replace("_", " ")
    return f"replica {number + 1} of {spec.count} of the {roles} loads {spec.checkpoint}"


def _wait_for_all(loading: dict[Any, tuple[ReplicaSpec, progress.Doing]]) -> None:
    """Empties ``loading``: call → what it loads."""
    while loading:
        [ready], _ = ray.wait(list(loading))
        spec, doing = loading[ready]
        try:
            ray.get(ready)
        except RayError as error:
            told = replica_error(error, "loading its model")
            raise ReplicaError(f"a replica of {' and '.join(spec.roles)} could not start: {told}") from error
        doing.end()
        del loading[ready]


def environment(spec: ReplicaSpec) -> dict[str, str]:
    level = "INFO" if progress.shows_workers() else "WARNING"
    variables = {"VLLM_LOGGING_LEVEL": level, "TOKENIZERS_PARALLELISM": "false", "VLLM_NO_USAGE_STATS": "1"}
    if spec.gpus == 0:
        variables |= {
            # One thread per reserved CPU: with more, replicas that share cores are many times slower.
            "OMP_NUM_THREADS": str(max(1, int(spec.cpus))),
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            # Without tensor parallelism the engine runs in the actor's process, which saves a process per replica.
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0" if spec.tensor_parallel == 1 else "1",
        }
        if spec.engine.enforce_eager:
            variables["TORCH_COMPILE_DISABLE"] = "1"
    return variables
