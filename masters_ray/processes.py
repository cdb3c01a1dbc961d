"""Which processes a run starts, how many, and what one of them reserves. Placement checks and spawning both ask here.

making rollouts       teachers, teacher judges; students, judges and the reference policy
online iterations     the same, beside or in turns with the learner's workers
measuring             the trained student and its judge
learning              the learner's workers
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from masters_ray.config import Config, JudgedBy, Learner, Student, Teacher

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

    @property
    def resources(self) -> dict[str, float]:
        """As Ray names them."""
        return {"CPU": self.cpus, "GPU": self.gpus} if self.gpus else {"CPU": self.cpus}


def making(config: Config, number: int = 0, *, learned: bool) -> list[Processes]:
    """What makes rollouts with teacher ``number``. learned: the student that writes is not the one before training any
    more, so that judge and reference policy need processes of their own. Otherwise student and judge share processes as
    far as there are both and conf says so; students that join later then judge, too."""
    student, judge = config.student, config.judge
    judges = judge.replicas if "student" in config.judges else 0
    joining = _may_join(student)
    if learned:
        staying: tuple[Role, ...] = ("reference", "judge") if judges else ("reference",)
        students = [_students(config, ("student",), student.replicas, joining), _students(config, staying)]
    else:
        shared = min(student.replicas, judges) if judge.share_process else 0
        students = [
            _students(config, ("student", "judge"), shared, joining if shared else 0),
            _students(config, ("student",), student.replicas - shared, 0 if shared else joining),
            _students(config, ("judge",), judges - shared),
        ]
    return [*_teachers(config, number), *(one for one in students if one.count)]


def online(config: Config) -> list[Processes]:
    """What makes rollouts with the first teacher while the student learns. None may join later: it would take the room
    of the learner's workers."""
    follows = config.judge.follows_student
    return [
        *(replace(one, may_join=0) for one in _teachers(config, 0)),
        _students(config, ("student", "judge") if follows else ("student",), config.student.replicas),
        _students(config, ("reference",) if follows else ("reference", "judge")),
    ]


def measuring(config: Config) -> list[Processes]:
    """What measures the trained student: itself, and the judge unless the rule marks."""
    judges = [judging(config, "student")] if config.evaluation.marked_by == "judge" else []
    return [_students(config, ("student",), config.student.replicas), *judges]


def judging(config: Config, judge: JudgedBy) -> Processes:
    """One judge and nothing else."""
    return _teachers(config, 0, judge=True)[1] if judge == "teacher" else _students(config, ("judge",))


def learning(learner: Learner) -> Processes:
    return Processes(key="learner", count=learner.workers, cpus=learner.cpus, gpus=learner.gpus)


def _teachers(config: Config, number: int, judge: bool = False) -> list[Processes]:
    """The masked teacher, and without a mask the one that judges if there is such a judge."""
    key, teacher = list(config.models)[number], config.of_teacher(number).teacher
    found = [_replicas(key, teacher, ("teacher",), teacher.replicas, _may_join(teacher))]
    if judge or "teacher" in config.judges:
        found.append(_replicas(key, teacher, ("teacher_judge",), config.judge.replicas))
    return found


def _students(config: Config, roles: tuple[Role, ...], count: int | None = None, may_join: int = 0) -> Processes:
    """count: default: of judges."""
    return _replicas("student", config.student, roles, config.judge.replicas if count is None else count, may_join)


def _replicas(key: str, model: Teacher | Student, roles: tuple[Role, ...], count: int, may_join: int = 0) -> Processes:
    gpus = model.gpus * model.tensor_parallel
    return Processes(key=key, roles=roles, count=count, may_join=may_join, cpus=model.cpus, gpus=gpus)


def _may_join(model: Teacher | Student) -> int:
    return 0 if model.max_replicas is None else model.max_replicas - model.replicas
