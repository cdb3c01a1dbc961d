"""What a run's parts are made from its configuration: processes, accuracies."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from masters_ray import checkpoints, weight_files, weights
from masters_ray.actors.devices import in_turns
from masters_ray.actors.host import HostSpec, Role
from masters_ray.actors.replicas import Deployment
from masters_ray.config import Config, JudgedBy, Student, Teacher
from masters_ray.engines import reserved
from masters_ray.engines.vllm_engine import Mask
from masters_ray.learner.job import LiveSource
from masters_ray.placement import Turns, transfer
from masters_ray.records import Source

_EVALUATED_AT_A_TIME = 128
"""Held-out questions that a replica is handed at a time."""


def deployments(config: Config, first_ratio: float, writer: Path | None = None) -> list[Deployment]:
    """The processes that rollouts before training need: teachers; students, judges and the reference policy, together
    as far as their weights are the same and conf shares them.

    writer: the student that writes, when it is not the one before training any more. Students that join later play the
    judge as well if the processes are shared at all.
    """
    student, judge = config.student, config.judge
    judges = judge.replicas if "student" in config.judges else 0
    joining = 0 if student.max_replicas is None else student.max_replicas - student.replicas
    first = _student(config, ("student",))
    if writer is None:
        together = min(student.replicas, judges) if judge.share_process else 0
        wanted = [
            (dataclasses.replace(first, roles=("student", "judge")), together, joining if together else 0),
            (first, student.replicas - together, 0 if together else joining),
            (dataclasses.replace(first, roles=("judge",)), judges - together, 0),
        ]
    else:
        roles: tuple[Role, ...] = ("reference", "judge") if judges else ("reference",)
        wanted = [
            (dataclasses.replace(first, checkpoint=str(writer)), student.replicas, joining),
            (dataclasses.replace(first, roles=roles), judge.replicas, 0),
        ]
    students = [_deployment(config, student, *one) for one in wanted if one[1]]
    return [*_teachers(config, first_ratio), *students]


def online_deployments(config: Config, first_ratio: float, turns: Turns | None = None) -> list[Deployment]:
    """The processes that online iterations need: teachers; students, whose weights follow the learner's; judges and the
    reference policy, whose weights do not, unless conf has the judge follow. None may join later: it would take the
    room of the learner's workers.

    turns: where learner and rollouts take turns; the processes then reserve nothing and may be there before, beside and
    after the learner's workers."""
    student, judge = config.student, config.judge
    writing: tuple[Role, ...] = ("student", "judge") if judge.follows_student else ("student",)
    staying: tuple[Role, ...] = ("reference",) if judge.follows_student else ("reference", "judge")
    found = [
        *(dataclasses.replace(one, max_replicas=one.replicas) for one in _teachers(config, first_ratio)),
        _deployment(
            config,
            student,
            dataclasses.replace(_student(config, writing), transfer=transfer(config, turns)),
            student.replicas,
        ),
        _deployment(config, student, _student(config, staying), judge.replicas),
    ]
    return found if turns is None else in_turns(found, turns.gpus)


def _teachers(config: Config, first_ratio: float) -> list[Deployment]:
    teacher = config.teacher
    masked = HostSpec(
        checkpoint=absolute(teacher.checkpoint),
        roles=("teacher",),
        engine=teacher.engine,
        tensor_parallel=teacher.tensor_parallel,
        top_k=teacher.top_k,
        mask=Mask(scope=teacher.mask, ratio=first_ratio),
        common=_common(config),
        never=_never(config, "teacher"),
    )
    joining = 0 if teacher.max_replicas is None else teacher.max_replicas - teacher.replicas
    found = [_deployment(config, teacher, masked, teacher.replicas, joining)]
    return [*found, _teacher_judge(config)] if "teacher" in config.judges else found


def _teacher_judge(config: Config) -> Deployment:
    teacher = config.teacher
    spec = HostSpec(
        checkpoint=absolute(teacher.checkpoint),
        roles=("teacher_judge",),
        engine=teacher.engine,
        tensor_parallel=teacher.tensor_parallel,
        judge_max_tokens=config.judge.max_tokens,
    )
    return _deployment(config, teacher, spec, config.judge.replicas)


def live_sources(config: Config) -> tuple[LiveSource, ...]:
    """The run's teachers as the learner loads them."""
    teachers = [config.of_teacher(number).teacher for number in range(len(config.schedules))]
    return tuple(
        LiveSource(checkpoint=absolute(teacher.checkpoint), parts=tuple(Mask(scope=teacher.mask, ratio=0.0).parts))
        for teacher in teachers
    )


def judge_deployment(config: Config, judge: JudgedBy) -> Deployment:
    """The replicas of one judge and nothing else."""
    if judge == "teacher":
        return _teacher_judge(config)
    return _deployment(config, config.student, _student(config, ("judge",)), config.judge.replicas)


def _student(config: Config, roles: tuple[Role, ...]) -> HostSpec:
    """The student before training."""
    return HostSpec(
        checkpoint=absolute(config.student.checkpoint),
        roles=roles,
        engine=config.student.engine,
        tensor_parallel=config.student.tensor_parallel,
        judge_max_tokens=config.judge.max_tokens,
        common=_common(config),
        never=_never(config, "student"),
    )


def _common(config: Config) -> int | None:
    """Tokens that teacher and student both have rows for: their heads may be padded to different widths."""
    widths = [weight_files.vocabulary(weights.locate(one.checkpoint)) for one in (config.teacher, config.student)]
    return min((width for width in widths if width is not None), default=None)


def _never(config: Config, writer: Source) -> tuple[int, ...]:
    """What a model must not write because it means something to the other one: the placeholders of the student's
    pictures; of the teacher's, and what ends its answers and not the student's, which would learn a foreign end."""
    teacher, student = (weights.locate(one.checkpoint) for one in (config.teacher, config.student))
    found = reserved.placeholder_ids(teacher) | reserved.placeholder_ids(student)
    if writer == "teacher":
        found |= reserved.end_ids(teacher) - reserved.end_ids(student)
    return tuple(sorted(found))


def _deployment(
    config: Config, model: Teacher | Student, spec: HostSpec, replicas: int, may_join: int = 0
) -> Deployment:
    share = model.gpus if 0 < model.gpus < 1 else 1.0
    engine = spec.engine
    if model.gpus == 0 and engine.kv_cache_memory_bytes is None and engine.gpu_memory_utilization is None:
        # A fraction of the memory is nothing for several engines that share it with all else.
        size = checkpoints.cache_bytes(weights.locate(model.checkpoint), engine)
        engine = dataclasses.replace(engine, kv_cache_memory_bytes=size)
    return Deployment(
        spec=dataclasses.replace(spec, engine=engine, memory=0.9 * share),
        replicas=replicas,
        max_replicas=replicas + may_join,
        cpus=model.cpus,
        gpus=model.gpus,
        max_restarts=config.rollout.max_restarts,
    )


def final_deployments(config: Config, trained: Path) -> list[Deployment]:
    """The processes that measuring the trained student needs: itself, and the judge unless the rule marks."""
    measured = dataclasses.replace(_student(config, ("student",)), checkpoint=str(trained))
    found = [_deployment(config, config.student, measured, config.student.replicas)]
    if config.evaluation.marked_by == "judge":
        found.append(judge_deployment(config, "student"))
    return found


def absolute(checkpoint: str) -> str:
    """A directory's whole path: an actor's current directory is not the driver's."""
    return str(Path(checkpoint).absolute()) if Path(checkpoint).is_dir() else checkpoint
