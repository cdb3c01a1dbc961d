"""Owns the replicas of a run: only one set of them runs at a time, so that sets never share devices."""

from collections.abc import Callable, Hashable

from masters_ray.config import Config
from masters_ray.pipeline.parallel import run_all
from masters_ray.replicas import processes
from masters_ray.replicas.placement import Turns
from masters_ray.replicas.spawn import Replicas
from masters_ray.replicas.spec import ReplicaSpec, in_turns, specs


class ReplicaOwner:
    """Starts replicas when they are needed, keeps them while the same key is asked for, and stops them."""

    def __init__(self, config: Config, turns: Turns | None) -> None:
        """turns: the node on which learner and rollouts take turns, if they do. Raises ConfigError when engines on the
        same GPU are configured to take more memory than it has."""
        self.turns = turns
        self._config = config
        self._key: Hashable = None
        self._replicas: Replicas | None = None
        for teacher in range(len(config.schedules)) if turns is not None else ():
            self._online_specs(teacher, 0.0)

    def get(self, key: Hashable, wanted: Callable[[], list[ReplicaSpec]]) -> Replicas:
        """Returns the replicas started under this key, else stops all and starts ``wanted``. Raises ReplicaError when
        they cannot start."""
        if self._replicas is None or key != self._key:
            self.close()
            self._replicas, self._key = Replicas(wanted()), key
        return self._replicas

    def online(self, teacher: int, ratio: float) -> Replicas:
        """Returns the replicas of online iterations. teacher: its number. ratio: of its mask, if it is started now."""
        return self.get(("online", teacher), lambda: self._online_specs(teacher, ratio))

    def give_way(self) -> None:
        """In turns: returns once all replicas have freed their GPU memory. No call may be in progress on them. Raises
        as ``Pool.sleep``."""
        if self.turns is not None and self._replicas is not None:
            run_all([pool.sleep for pool in self._replicas.pools.values()])

    def close(self) -> None:
        """Stops the replicas and drops their calls in progress."""
        replicas, self._replicas = self._replicas, None
        if replicas is not None:
            replicas.close()

    def _online_specs(self, teacher: int, ratio: float) -> list[ReplicaSpec]:
        config = self._config.of_teacher(teacher)
        online = processes.for_rollouts(config, learned=True, follows=config.judge.follows_student)
        wanted = specs(config, online, ratio)
        return wanted if self.turns is None else in_turns(wanted, self.turns.gpus)
