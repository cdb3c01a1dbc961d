"""Which replica processes each phase of a run starts, and what each reserves: read by placement and by spawning."""

from dataclasses import dataclass
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
    cpus: float
    """CPUs of each process."""
    gpus: float
    """GPUs of each process, over all its tensor-parallel ranks."""


def for_rollouts(config: Config, number: int = 0, *, learned: bool) -> list[Processes]:
    """Returns the processes that make rollouts with teacher ``number``. learned: a trained student writes, so judge and
    reference policy get processes of their own. Otherwise judge and student share processes if judge.share_process, as
    far as both numbers go."""
    students, judge = config.student.replicas, config.judge
    judges = judge.replicas if "student" in config.judges else 0
    shared = min(students, judges) if judge.share_process and not learned else 0
    others = judge.replicas if learned else judges - shared
    staying: tuple[Role, ...] = ("judge",) if not learned else ("reference", "judge") if judges else ("reference",)
    found = [
        _replicas(config, "student", ("student", "judge"), shared),
        _replicas(config, "student", ("student",), students - shared),
        _replicas(config, "student", staying, others),
    ]
    return [*_teachers(config, number), *(one for one in found if one.count)]


def for_online_rollouts(config: Config) -> list[Processes]:
    """Returns the processes that make online rollouts with the first teacher."""
    follows = config.judge.follows_student
    return [
        *_teachers(config, 0),
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
    return [_replicas(config, key, ("teacher",), config.models[key].replicas), *judges]


def _replicas(config: Config, key: str, roles: tuple[Role, ...], count: int) -> Processes:
    model = config.models[key]
    return Processes(key=key, roles=roles, count=count, cpus=model.cpus, gpus=model.gpus * model.tensor_parallel)
