"""Which replica processes each phase of a run starts, and what each reserves: read by placement and by spawning."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from masters_ray.config import Config, JudgedBy

Role = Literal["teacher", "student", "reference", "judge", "teacher_judge"]
"""judge: the student before training, or the current one with judge.follows_student; reference: the student before
training, which scores answers that a later student wrote; teacher_judge: the unmasked teacher."""


@dataclass(frozen=True, kw_only=True)
class Processes:
    """Equal processes: same model, roles and reservation."""

    key: str
    """Section of the configuration: "teacher", "growth[0].teacher", "student" or "learner"."""
    roles: tuple[Role, ...] = ()
    """Roles of a replica; empty for the learner's workers."""
    count: int
    """Processes started before any work."""
    may_join: int = 0
    """Further processes that join when the cluster has room."""
    cpus: float
    """CPUs of each process."""
    gpus: float
    """GPUs of each process, over all its tensor-parallel ranks."""


def for_rollouts(config: Config, number: int = 0, *, learned: bool) -> list[Processes]:
    """Returns the processes that make rollouts with teacher ``number``. learned: a trained student writes, so judge and
    reference policy get processes of their own. Otherwise judge and student share processes if judge.share_process, as
    far as both numbers go, and students that join later judge too."""
    students, judge = config.student.replicas, config.judge
    judges = judge.replicas if "student" in config.judges else 0
    shared = min(students, judges) if judge.share_process and not learned else 0
    others = judge.replicas if learned else judges - shared
    staying: tuple[Role, ...] = ("judge",) if not learned else ("reference", "judge") if judges else ("reference",)
    found = [
        _replicas(config, "student", ("student", "judge"), shared, joins=True),
        _replicas(config, "student", ("student",), students - shared, joins=not shared),
        _replicas(config, "student", staying, others),
    ]
    return [*_teachers(config, number), *(one for one in found if one.count)]


def for_online_rollouts(config: Config) -> list[Processes]:
    """Returns the processes that make online rollouts with the first teacher. None may join later, since it would take
    the room of the learner's workers."""
    follows = config.judge.follows_student
    return [
        *(replace(one, may_join=0) for one in _teachers(config, 0)),
        _replicas(config, "student", ("student", "judge") if follows else ("student",), config.student.replicas),
        _replicas(config, "student", ("reference",) if follows else ("reference", "judge"), config.judge.replicas),
    ]


def for_measuring(config: Config) -> list[Processes]:
    """Returns the processes that evaluate the trained student: its replicas, and the judge unless the rule marks."""
    judges = [for_judging(config, "student")] if config.evaluation.marked_by == "judge" else []
    return [_replicas(config, "student", ("student",), config.student.replicas), *judges]


def for_judging(config: Config, judge: JudgedBy, number: int = 0) -> Processes:
    """Returns the processes of a judge alone: the student, or teacher ``number`` without a mask."""
    if judge == "teacher":
        return _replicas(config, list(config.models)[number], ("teacher_judge",), config.judge.replicas)
    return _replicas(config, "student", ("judge",), config.judge.replicas)


def _teachers(config: Config, number: int) -> list[Processes]:
    """Returns the masked teacher's processes, and those of the teacher judge if there is one."""
    key = list(config.models)[number]
    judges = [for_judging(config, "teacher", number)] if "teacher" in config.judges else []
    return [_replicas(config, key, ("teacher",), config.models[key].replicas, joins=True), *judges]


def _replicas(config: Config, key: str, roles: tuple[Role, ...], count: int, *, joins: bool = False) -> Processes:
    """joins: further processes up to the model's max_replicas may join."""
    model = config.models[key]
    may_join = model.max_replicas - model.replicas if joins and model.max_replicas is not None else 0
    gpus = model.gpus * model.tensor_parallel
    return Processes(key=key, roles=roles, count=count, may_join=may_join, cpus=model.cpus, gpus=gpus)
