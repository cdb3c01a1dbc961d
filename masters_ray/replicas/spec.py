"""What each replica process loads, and which GPUs it uses when it takes turns with the learner."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from masters_ray.config import Config, Engine, Part
from masters_ray.errors import Complaint, ConfigError
from masters_ray.families import parts_in
from masters_ray.method import schedule
from masters_ray.models import weights
from masters_ray.replicas.processes import Processes

_BESIDE_THE_LEARNER = 0.6
"""Fraction of a GPU's memory for all engines on it together when the learner's weights and optimizer stay there."""


@dataclass(frozen=True, kw_only=True)
class ReplicaSpec(Processes):
    """Replica processes and what each of them loads. Roles with the same weights may share a process."""

    checkpoint: str
    engine: Engine
    tensor_parallel: int = 1
    top_k: int = 1  # log-probs kept per token by a teacher
    masked: tuple[Part, ...] | None = None  # a teacher's parts, masked at ``ratio`` at first
    ratio: float = 0.0
    ratios: tuple[float, ...] = ()  # all of the teacher's schedule
    judge_max_tokens: int = 256
    common: int | None = None
    """Number of vocabulary rows that teacher and student both have; None: all rows of this model."""
    never: tuple[int, ...] = ()  # token ids that the model must not write, beside its own placeholders
    max_restarts: int = 0
    devices: tuple[str, ...] | None = None
    """In turns with the learner: GPUs that each process uses, such as "0,1"; Ray reserves nothing."""

    @property
    def share(self) -> float:
        """GPUs of each tensor-parallel rank."""
        return self.gpus / self.tensor_parallel

    @property
    def width(self) -> int:
        """Whole GPUs that a process has a part of."""
        return math.ceil(self.share) * self.tensor_parallel

    @property
    def sleeps(self) -> bool:
        """Whether it frees its GPU memory in ``sleep`` until the next call."""
        return self.devices is not None and self.gpus > 0


def specs(
    config: Config, wanted: Sequence[Processes], ratio: float = 0.0, student: Path | None = None
) -> list[ReplicaSpec]:
    """Returns what these processes load with the configuration's first teacher. ratio: the teacher's mask ratio;
    student: checkpoint of the student that writes; default: the one before training."""
    theirs, ours = (weights.locate(one.checkpoint) for one in (config.teacher, config.student))
    widths = [width for folder in (theirs, ours) if (width := weights.vocabulary(folder)) is not None]
    # Tokens that a model must not write: the placeholders of both models; for a teacher also its end tokens that the
    # student does not have, which the student would learn otherwise.
    placeholders = weights.placeholder_ids(theirs) | weights.placeholder_ids(ours)
    foreign_ends = weights.end_ids(theirs) - weights.end_ids(ours)
    found = []
    for one in wanted:
        model = config.models[one.key]
        engine, teaches = model.engine, "teacher" in one.roles
        judges_alone = one.roles == ("teacher_judge",)
        if model.gpus == 0 and engine.kv_cache_memory_bytes is None and engine.gpu_memory_utilization is None:
            # On a CPU vLLM's fraction of the memory does not suit engines that share it with everything else.
            engine = replace(engine, kv_cache_memory_bytes=2**30)
        spec = ReplicaSpec(
            **vars(one),
            checkpoint=str(student) if student is not None and "student" in one.roles else absolute(model.checkpoint),
            engine=engine,
            tensor_parallel=model.tensor_parallel,
            top_k=config.teacher.top_k if teaches else 1,
            masked=tuple(parts_in(config.teacher.mask)) if teaches else None,
            ratio=ratio,
            ratios=tuple(one for one, _ in schedule.ratios(config.schedule)) if teaches else (),
            judge_max_tokens=config.judge.max_tokens,
            common=None if judges_alone else min(widths, default=None),
            never=() if judges_alone else tuple(sorted(placeholders | (foreign_ends if teaches else set()))),
            max_restarts=config.rollout.max_restarts,
        )
        found.append(spec)
    return found


def absolute(checkpoint: str) -> str:
    """Returns a directory's absolute path (an actor's current directory is another), or a model id unchanged."""
    return str(Path(checkpoint).absolute()) if Path(checkpoint).is_dir() else checkpoint


def in_turns(wanted: Sequence[ReplicaSpec], gpus: int) -> list[ReplicaSpec]:
    """Assigns the processes to a node's ``gpus`` GPUs without reserving them; their engines can ``sleep``. Engines on
    the same GPU are awake together and share the memory that the learner leaves. Raises ConfigError when
    gpu_memory_utilization adds up to more than 1 on a GPU.

    The ranks of a process get neighbouring GPUs; processes are spread to keep the fullest GPU's load low, widest first.
    Example: a teacher on 2 GPUs and two students of half a GPU, on 4 GPUs: ``("0,1",)`` and ``("2", "3")``."""
    load, taken = [0.0] * gpus, [0.0] * gpus
    places: list[tuple[ReplicaSpec, list[range]]] = []
    for one in sorted(wanted, key=lambda one: (-one.width, -one.share)):
        parts = [range(first, first + one.width) for first in range(gpus - one.width + 1)]
        own: list[range] = []
        for _ in range(one.count):
            own.append(min(parts, key=lambda part: max((load[gpu] for gpu in part), default=0.0)))
            for gpu in own[-1]:
                load[gpu] += min(1.0, one.share)
        places.append((one, own))
    found = []
    for one, own in places:
        engine = one.engine
        if one.gpus and engine.gpu_memory_utilization is None:
            memory = _BESIDE_THE_LEARNER * min(1.0, one.share) / max(1.0, *load)
            engine = replace(engine, gpu_memory_utilization=memory)
        for gpu in itertools.chain(*own):
            taken[gpu] += engine.gpu_memory_utilization or 0.0
        found.append(replace(one, engine=engine, devices=tuple(",".join(map(str, part)) for part in own)))
    if (most := max(taken, default=0.0)) > 1 + 1e-9:
        where = "teacher.engine.gpu_memory_utilization with student.engine.gpu_memory_utilization"
        expected = "at most 1 together on a GPU, less what the learner keeps there, where they take turns"
        remedy = f"Lower them, or set null: then the engines on a GPU take {_BESIDE_THE_LEARNER} of it together."
        raise ConfigError([Complaint(where, expected, f"{most:.2f} on GPU {taken.index(most)}", remedy)])
    return found
