"""What the processes of a run load: a HostSpec for each kind that ``processes`` lists."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from masters_ray import processes, weights
from masters_ray.actors.devices import in_turns
from masters_ray.actors.host import HostSpec
from masters_ray.actors.replicas import Deployment
from masters_ray.config import Config, JudgedBy
from masters_ray.engines import reserved
from masters_ray.engines.vllm_engine import Mask
from masters_ray.placement import Turns
from masters_ray.processes import Processes


def making(config: Config, first_ratio: float, writer: Path | None = None) -> list[Deployment]:
    """The replicas that rollouts before training need. writer: the student that writes, when it is not the one before
    training any more."""
    wanted = processes.making(config, learned=writer is not None)
    return _deployed(config, wanted, ratio=first_ratio, student=writer)


def online(config: Config, first_ratio: float, turns: Turns | None = None) -> list[Deployment]:
    """The replicas that online iterations need; the students' weights follow the learner's.

    turns: where learner and rollouts take turns; the processes then reserve nothing and may be there before, beside and
    after the learner's workers."""
    found = _deployed(config, processes.online(config), ratio=first_ratio)
    return found if turns is None else in_turns(found, turns.gpus)


def measuring(config: Config, trained: Path) -> list[Deployment]:
    """The replicas that measuring the trained student needs."""
    return _deployed(config, processes.measuring(config), student=trained)


def judging(config: Config, judge: JudgedBy) -> Deployment:
    """The replicas of one judge and nothing else."""
    return _deployed(config, [processes.judging(config, judge)])[0]


def absolute(checkpoint: str) -> str:
    """A directory's whole path: an actor's current directory is not the driver's."""
    return str(Path(checkpoint).absolute()) if Path(checkpoint).is_dir() else checkpoint


def _deployed(
    config: Config,
    wanted: Sequence[Processes],
    *,
    ratio: float = 0.0,
    student: Path | None = None,
) -> list[Deployment]:
    """ratio: of the teacher's mask; student: the one that writes, default: as before training."""
    found = []
    for one in wanted:
        model = config.models[one.key]
        engine, writes, masked = model.engine, "student" in one.roles, "teacher" in one.roles
        if model.gpus == 0 and engine.kv_cache_memory_bytes is None and engine.gpu_memory_utilization is None:
            # A fraction of the memory is nothing for several engines that share it with all else.
            size = weights.cache_bytes(weights.locate(model.checkpoint), engine)
            engine = dataclasses.replace(engine, kv_cache_memory_bytes=size)
        judges_alone = one.roles == ("teacher_judge",)
        spec = HostSpec(
            checkpoint=str(student) if student is not None and writes else absolute(model.checkpoint),
            roles=one.roles,
            engine=engine,
            tensor_parallel=model.tensor_parallel,
            top_k=config.teacher.top_k if masked else 1,
            mask=Mask(scope=config.teacher.mask, ratio=ratio) if masked else None,
            judge_max_tokens=config.judge.max_tokens,
            common=None if judges_alone else _common(config),
            never=() if judges_alone else _never(config, teacher=masked),
            memory=0.9 * (model.gpus if 0 < model.gpus < 1 else 1.0),
        )
        found.append(
            Deployment(
                spec=spec,
                replicas=one.count,
                may_join=one.may_join,
                cpus=model.cpus,
                gpus=model.gpus,
                max_restarts=config.rollout.max_restarts,
            )
        )
    return found


def _common(config: Config) -> int | None:
    """Tokens that teacher and student both have rows for: their heads may be padded to different widths."""
    widths = [weights.vocabulary(weights.locate(one.checkpoint)) for one in (config.teacher, config.student)]
    return min((width for width in widths if width is not None), default=None)


def _never(config: Config, *, teacher: bool) -> tuple[int, ...]:
    """What a model must not write because it means something to the other one: the placeholders of both; and a teacher
    what ends its answers and not the student's, which would learn a foreign end."""
    theirs, ours = (weights.locate(one.checkpoint) for one in (config.teacher, config.student))
    found = reserved.placeholder_ids(theirs) | reserved.placeholder_ids(ours)
    if teacher:
        found |= reserved.end_ids(theirs) - reserved.end_ids(ours)
    return tuple(sorted(found))
