"""Which GPUs a replica uses when Ray reserves none for it: learner and rollouts take turns on one node's."""

from __future__ import annotations

import dataclasses
import math
import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from masters_ray.errors import Complaint, ConfigError

if TYPE_CHECKING:
    from masters_ray.replicas.spawn import Deployment

_FOR_ENGINES = 0.6
"""Fraction of a GPU's memory that all engines on it take together where the learner's weights and optimizer stay."""
DEVICES = "MASTERS_RAY_DEVICES"
"""Variable of a replica's process: the GPUs that were assigned to it."""
_VISIBLE = "CUDA_VISIBLE_DEVICES"


def in_turns(deployments: Sequence[Deployment], gpus: int) -> list[Deployment]:
    """The same processes on a node's ``gpus`` GPUs without a reservation; engines on GPUs sleep unless something is
    asked of them. Those on one GPU are awake together, and share what the learner leaves of its memory. Raises
    ConfigError when they are told to take more than there is."""
    placed = [
        dataclasses.replace(one, devices=own) for one, own in zip(deployments, assigned(deployments, gpus), strict=True)
    ]
    most = max([1.0, *_on_each_gpu(placed, lambda one: min(1.0, one.gpus)).values()])
    found = []
    for one in placed:
        memory = _FOR_ENGINES * min(1.0, one.gpus) / most if one.gpus else one.spec.memory
        spec = dataclasses.replace(one.spec, sleeps=one.gpus > 0, memory=memory)
        found.append(dataclasses.replace(one, spec=spec))
    for gpu, taken in _on_each_gpu(found, lambda one: one.spec.utilization).items():
        if taken > 1 + 1e-9:
            complaint = Complaint(
                where="teacher.engine.gpu_memory_utilization with student.engine.gpu_memory_utilization",
                expected="at most 1 together on a GPU, less what the learner keeps there, where they take turns",
                found=f"{taken:.2f} on GPU {gpu}",
                remedy=f"Lower them, or set null: then the engines on a GPU take {_FOR_ENGINES} of it together.",
            )
            raise ConfigError([complaint])
    return found


def _on_each_gpu(placed: Sequence[Deployment], amount: Callable[[Deployment], float]) -> dict[str, float]:
    """GPU → what the engines on it make together."""
    found: dict[str, float] = defaultdict(float)
    for one in placed:
        for gpu in ",".join(one.devices or ()).split(","):
            if gpu:
                found[gpu] += amount(one)
    return found


def assigned(deployments: Sequence[Deployment], gpus: int) -> list[tuple[str, ...]]:
    """For each deployment the GPUs of each of its replicas, by their numbers on a node of ``gpus`` GPUs; "" without
    any. Ranks of a replica get neighbours; replicas are spread so that each GPU has as little to hold as may be, and
    those of less than a whole GPU share.

    Example: a teacher on 2 GPUs and two students with half a GPU each, on 4 GPUs → ``[("0,1",), ("2", "3")]``.

    Raises ValueError when a replica asks for more GPUs than there are.
    """
    load = [0.0] * gpus
    found: list[list[str]] = [[] for _ in deployments]
    order = sorted(range(len(deployments)), key=lambda index: (-_width(deployments[index]), -deployments[index].gpus))
    for index in order:
        one, width = deployments[index], _width(deployments[index])
        if width > gpus:
            raise ValueError(f"a replica of {' and '.join(one.spec.roles)} needs {width} GPUs, the node has {gpus}")
        for _ in range(one.replicas):
            starts = range(gpus - width + 1) if width else range(1)
            start = min(starts, key=lambda first: max(load[first : first + width], default=0.0))
            for number in range(start, start + width):
                load[number] += min(1.0, one.gpus)
            found[index].append(",".join(map(str, range(start, start + width))))
    return [tuple(own) for own in found]


def _width(deployment: Deployment) -> int:
    """GPUs that one replica sees."""
    return math.ceil(deployment.gpus) * deployment.spec.tensor_parallel


def show_own_devices() -> None:
    """In a replica's process, before anything looks for GPUs: the GPUs that were assigned to it are all that it sees.
    They are counted among those that the node's Ray shows."""
    if not (own := os.environ.get(DEVICES)):
        return
    shown = os.environ.get(_VISIBLE)
    names = shown.split(",") if shown else None
    os.environ[_VISIBLE] = ",".join(names[int(number)] if names else number for number in own.split(","))
