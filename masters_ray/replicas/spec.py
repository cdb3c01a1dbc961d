"""What the processes of replicas load, and which GPUs they use where they take turns with the learner."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from masters_ray.config import Config, Engine
from masters_ray.errors import Complaint, ConfigError
from masters_ray.models import reserved, weights
from masters_ray.models.vllm_engine import Mask
from masters_ray.replicas.processes import Processes

_BESIDE_THE_LEARNER = 0.6
"""What all engines on a GPU take together where the learner's weights and optimizer stay."""


@dataclass(frozen=True, kw_only=True)
class ReplicaSpec(Processes):
    """Processes of replicas, and what each of them loads. Roles share it when their weights are the same."""

    checkpoint: str
    engine: Engine
    tensor_parallel: int = 1
    top_k: int = 1
    """Teacher: log-probabilities kept per token."""
    mask: Mask | None = None
    """Teacher: what is masked, and the ratio to start with."""
    judge_max_tokens: int = 256
    common: int | None = None
    """Tokens that teacher and student both have rows for; default: as many as this model has."""
    never: tuple[int, ...] = ()
    """Tokens that it must not write, beside its own placeholders."""
    max_restarts: int = 0
    """How often a process that died is started again."""
    devices: tuple[str, ...] | None = None
    """In turns with the learner: for each process the node's GPUs that it uses, such as "0,1"; Ray reserves nothing."""

    @property
    def share(self) -> float:
        """GPUs of each tensor-parallel rank."""
        return self.gpus / self.tensor_parallel

    @property
    def sleeps(self) -> bool:
        """Holds GPU memory only from when something is asked of it to when it is sent to sleep."""
        return self.devices is not None and self.gpus > 0


def specs(
    config: Config, wanted: Sequence[Processes], ratio: float = 0.0, student: Path | None = None
) -> list[ReplicaSpec]:
    """What these processes load with the configuration's first teacher. ratio: of its mask; student: the one that
    writes, default: as before training."""
    theirs, ours = (weights.locate(one.checkpoint) for one in (config.teacher, config.student))
    widths = [width for folder in (theirs, ours) if (width := weights.vocabulary(folder)) is not None]
    # What a model must not write because it means something to the other one: the placeholders of both; and a teacher
    # what ends its answers and not the student's, which would learn a foreign end.
    placeholders = reserved.placeholder_ids(theirs) | reserved.placeholder_ids(ours)
    foreign_ends = reserved.end_ids(theirs) - reserved.end_ids(ours)
    found = []
    for one in wanted:
        model = config.models[one.key]
        engine, masked = model.engine, "teacher" in one.roles
        judges_alone = one.roles == ("teacher_judge",)
        if model.gpus == 0 and engine.kv_cache_memory_bytes is None and engine.gpu_memory_utilization is None:
            # A fraction of the memory is nothing for several engines that share it with all else.
            size = weights.cache_bytes(weights.locate(model.checkpoint), engine)
            engine = replace(engine, kv_cache_memory_bytes=size)
        spec = ReplicaSpec(
            **vars(one),
            checkpoint=str(student) if student is not None and "student" in one.roles else absolute(model.checkpoint),
            engine=engine,
            tensor_parallel=model.tensor_parallel,
            top_k=config.teacher.top_k if masked else 1,
            mask=Mask(scope=config.teacher.mask, ratio=ratio) if masked else None,
            judge_max_tokens=config.judge.max_tokens,
            common=None if judges_alone else min(widths, default=None),
            never=() if judges_alone else tuple(sorted(placeholders | (foreign_ends if masked else set()))),
            max_restarts=config.rollout.max_restarts,
        )
        found.append(spec)
    return found


def absolute(checkpoint: str) -> str:
    """A directory's whole path: an actor's current directory is not the driver's."""
    return str(Path(checkpoint).absolute()) if Path(checkpoint).is_dir() else checkpoint


def in_turns(wanted: Sequence[ReplicaSpec], gpus: int) -> list[ReplicaSpec]:
    """The same processes on a node's ``gpus`` GPUs without a reservation; engines on GPUs sleep unless something is
    asked of them. Those on one GPU are awake together, and share what the learner leaves of its memory.

    Ranks of a process get neighbours; processes are spread so that each GPU has as little to hold as may be, and those
    of less than a whole GPU share. Example: a teacher on 2 GPUs and two students with half a GPU each, on 4 GPUs:
    devices ``("0,1",)`` and ``("2", "3")``.

    Raises ConfigError when engines are told to take more of a GPU than there is, ValueError when a process asks for
    more GPUs than there are.
    """
    load, taken = [0.0] * gpus, [0.0] * gpus
    places: list[list[range]] = [[] for _ in wanted]
    widths = [math.ceil(one.share) * one.tensor_parallel for one in wanted]
    for index in sorted(range(len(wanted)), key=lambda index: (-widths[index], -wanted[index].share)):
        one, width = wanted[index], widths[index]
        if width > gpus:
            raise ValueError(f"a replica of {' and '.join(one.roles)} needs {width} GPUs, the node has {gpus}")
        for _ in range(one.count):
            first = min(range(gpus - width + 1), key=lambda first: max(load[first : first + width], default=0.0))
            places[index].append(range(first, first + width))
            for gpu in places[index][-1]:
                load[gpu] += min(1.0, one.share)
    found = []
    for one, own in zip(wanted, places, strict=True):
        engine = one.engine
        if one.gpus and engine.gpu_memory_utilization is None:
            memory = _BESIDE_THE_LEARNER * min(1.0, one.share) / max(1.0, *load)
            engine = replace(engine, gpu_memory_utilization=memory)
        for gpu in (gpu for place in own for gpu in place):
            taken[gpu] += engine.gpu_memory_utilization or 0.0
        found.append(replace(one, engine=engine, devices=tuple(",".join(map(str, place)) for place in own)))
    if (most := max(taken, default=0.0)) > 1 + 1e-9:
        complaint = Complaint(
            where="teacher.engine.gpu_memory_utilization with student.engine.gpu_memory_utilization",
            expected="at most 1 together on a GPU, less what the learner keeps there, where they take turns",
            found=f"{most:.2f} on GPU {taken.index(most)}",
            remedy=f"Lower them, or set null: then the engines on a GPU take {_BESIDE_THE_LEARNER} of it together.",
        )
        raise ConfigError([complaint])
    return found
