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

    key: str  # section of the configuration: "teacher", "growth[0].teacher", "student" or "learner"
    roles: tuple[Role, ...] = ()
    count: int
    cpus: float
    gpus: float  # of each process, over all its tensor-parallel ranks


def for_rollouts(config: Config, number: int = 0, *, learned: bool, follows: bool = False) -> list[Processes]:
    """Returns the processes that make rollouts with teacher ``number``. learned: a trained student writes, so judge and
    reference policy get processes of their own, or the writer judges if it ``follows``. Otherwise judge and student
    share processes if judge.share_process, as far as both numbers go."""
    students, judge = config.student.replicas, config.judge
    counts: dict[tuple[Role, ...], int]
    if learned and follows:
        counts = {("student", "judge"): students, ("reference",): judge.replicas}
    elif learned:
        counts = {("student",): students, ("reference", "judge"): judge.replicas}
    else:
        judges = judge.replicas if "student" in config.judges else 0
        shared = min(students, judges) if judge.share_process else 0
        counts = {("student", "judge"): shared, ("student",): students - shared, ("judge",): judges - shared}
    key = list(config.models)[number]
    teacher_judges = [for_judging(config, "teacher", number)] if "teacher" in config.judges else []
    others = [_replicas(config, "student", roles, count) for roles, count in counts.items() if count]
    return [_replicas(config, key, ("teacher",), config.models[key].replicas), *teacher_judges, *others]


def for_measuring(config: Config) -> list[Processes]:
    """Returns the processes that evaluate the trained student: its replicas, and the judge if it marks."""
    judges = [for_judging(config, "student")] if config.marks_by_judge else []
    return [_replicas(config, "student", ("student",), config.student.replicas), *judges]


def for_judging(config: Config, judge: JudgedBy, number: int = 0) -> Processes:
    """Returns the processes of a judge alone: the student, or teacher ``number`` without a mask."""
    if judge == "teacher":
        return _replicas(config, list(config.models)[number], ("teacher_judge",), config.judge.replicas)
    return _replicas(config, "student", ("judge",), config.judge.replicas)


def _replicas(config: Config, key: str, roles: tuple[Role, ...], count: int) -> Processes:
    model = config.models[key]
    return Processes(key=key, roles=roles, count=count, cpus=model.cpus, gpus=model.gpus * model.tensor_parallel)
