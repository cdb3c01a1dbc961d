"""Which processes a run starts, how many, and what one of them reserves: for placement checks and for spawning."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from masters_ray.config import Config, JudgedBy

Role = Literal["teacher", "student", "reference", "judge", "teacher_judge"]
"""A judge is the student as it was at the start (or the one that writes, if conf says so), and so is the reference
policy, which scores answers when another student writes them; a teacher_judge is the teacher without a mask."""


@dataclass(frozen=True, kw_only=True)
class Processes:
    """Processes that load the same model for the same roles, and reserve the same."""

    key: str
    """Section of the configuration: "teacher", "growth[0].teacher", "student" or "learner"."""
    roles: tuple[Role, ...] = ()
    """Of replicas; the learner's workers have none."""
    count: int
    """Started before anything is done."""
    may_join: int = 0
    """Started beside them when there is room."""
    cpus: float
    """Of one process."""
    gpus: float
    """Of one process, all its tensor-parallel ranks together."""


def for_rollouts(config: Config, number: int = 0, *, learned: bool) -> list[Processes]:
    """What makes rollouts with teacher ``number``. learned: the student that writes has learned, so that judge and
    reference policy need processes of their own. Otherwise student and judge share processes as far as there are both
    and conf says so; students that join later then judge, too."""
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
    """What makes rollouts with the first teacher while the student learns. None may join later: it would take the room
    of the learner's workers."""
    follows = config.judge.follows_student
    return [
        *(replace(one, may_join=0) for one in _teachers(config, 0)),
        _replicas(config, "student", ("student", "judge") if follows else ("student",), config.student.replicas),
        _replicas(config, "student", ("reference",) if follows else ("reference", "judge"), config.judge.replicas),
    ]


def for_measuring(config: Config) -> list[Processes]:
    """What measures the trained student: itself, and the judge unless the rule marks."""
    judges = [for_judging(config, "student")] if config.evaluation.marked_by == "judge" else []
    return [_replicas(config, "student", ("student",), config.student.replicas), *judges]


def for_judging(config: Config, judge: JudgedBy, number: int = 0) -> Processes:
    """One judge and nothing else: the student, or teacher ``number`` without a mask."""
    if judge == "teacher":
        return _replicas(config, list(config.models)[number], ("teacher_judge",), config.judge.replicas)
    return _replicas(config, "student", ("judge",), config.judge.replicas)


def _teachers(config: Config, number: int) -> list[Processes]:
    """The masked teacher, and the one that judges if there is such a judge."""
    key = list(config.models)[number]
    judges = [for_judging(config, "teacher", number)] if "teacher" in config.judges else []
    return [_replicas(config, key, ("teacher",), config.models[key].replicas, joins=True), *judges]


def _replicas(config: Config, key: str, roles: tuple[Role, ...], count: int, *, joins: bool = False) -> Processes:
    """joins: those up to the model's max_replicas may join."""
    model = config.models[key]
    may_join = model.max_replicas - model.replicas if joins and model.max_replicas is not None else 0
    gpus = model.gpus * model.tensor_parallel
    return Processes(key=key, roles=roles, count=count, may_join=may_join, cpus=model.cpus, gpus=gpus)
