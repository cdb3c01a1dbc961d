"""What a whole configuration must obey beyond types; touches no file."""

from __future__ import annotations

import dataclasses
import math
import os
import re
from pathlib import Path
from typing import Any

from masters_ray.config import learner_rules
from masters_ray.config.complaints import Rules
from masters_ray.config.schema import Config, Rollout, Schedule, Student, Teacher
from masters_ray.errors import Complaint, masked

_PILLOW_MAX_PIXELS = 178_956_970
_INEXACT = 1e-6
_ONE_SLASH = re.compile("(s3|gs|gcs|abfss?|hdfs|file|https?):/(?!/)", re.IGNORECASE)
_FINITE = "a finite number"


def violations(config: Config) -> list[Complaint]:
    """Every broken rule of a whole configuration; touches no file."""
    rules = Rules()
    rules.at_least("run.seed", config.run.seed, 0)
    if config.cluster.local_cpus is not None:
        rules.at_least("cluster.local_cpus", config.cluster.local_cpus, 1)
    _rollout(rules, config)
    _teacher(rules, "", config.teacher, config.schedule)
    for number, further in enumerate(config.growth):
        _teacher(rules, f"growth[{number}].", further.teacher, further.schedule)
    _replicas(rules, "student", config.student)
    for key, found in {
        "judge.replicas": config.judge.replicas,
        "judge.max_tokens": config.judge.max_tokens,
        "evaluation.max_tokens": config.evaluation_tokens,
    }.items():
        rules.at_least(key, found, 1)
    rules.at_least("evaluation.examples", config.evaluation.examples, 0)
    _rewards(rules, config)
    learner_rules.check(rules, config.learner)
    _data(rules, config)
    _engines(rules, config)
    _values(rules, "", dataclasses.asdict(config))
    _folders(rules, config)
    _paths(rules, config)
    endless = {one.where for one in rules.broken if one.expected == _FINITE}
    return [one for one in rules.broken if one.expected == _FINITE or one.where not in endless]


def _folders(rules: Rules, config: Config) -> None:
    """vLLM reads the names of directories with weights as patterns of names."""
    folders = {"run.dir": config.run.dir, "student.checkpoint": config.student.checkpoint}
    folders |= {f"{name}.checkpoint": one.checkpoint for name, one in _teachers(config).items()}
    for key, folder in folders.items():
        here = key == "run.dir" or os.path.lexists(folder)  # otherwise it may be a name on the Hub
        path = str(Path(folder).absolute()) if here else folder
        rules.rule(
            not set("*?[") & set(path),
            key,
            "a path without *, ? and [, which vLLM cannot load weights from",
            path,
            "Choose or link another directory.",
        )


def _paths(rules: Rules, config: Config) -> None:
    """Nobody but a shell knows what ~ is, and an address with one slash is a directory's name."""
    paths = {"run.dir": config.run.dir, "rollout.store": config.rollout.store}
    paths |= {f"rollout.reuse[{number}]": one for number, one in enumerate(config.rollout.reuse)}
    paths |= {"data.train.path": config.data.train.path, "data.held_out.path": config.data.held_out.path}
    paths |= {f"{name}.checkpoint": model.checkpoint for name, model in config.models.items()}
    for key, path in paths.items():
        rules.rule(
            not str(path or "").startswith("~"), key, "a path without ~", path, "Write the whole path, or $HOME."
        )
        rules.rule(
            _ONE_SLASH.match(str(path or "")) is None, key, "an address with two slashes, or a path", path, "Write ://."
        )


def _teachers(config: Config) -> dict[str, Teacher]:
    """Every teacher by its key."""
    further = {f"growth[{number}].teacher": one.teacher for number, one in enumerate(config.growth)}
    return {"teacher": config.teacher} | further


def _values(rules: Rules, key: str, found: Any) -> None:
    """Every number is finite, and no address gives access by itself: it is written to the run's files."""
    if isinstance(found, dict | list):
        for name, one in found.items() if isinstance(found, dict) else enumerate(found):
            _values(rules, f"{key}[{name}]" if isinstance(found, list) else f"{key}.{name}".strip("."), one)
    elif isinstance(found, float):
        rules.rule(math.isfinite(found), key, _FINITE, found, "Write a number.")
    elif isinstance(found, str):
        rules.rule(
            masked(found) == found,
            key,
            "an address without credentials",
            masked(found),
            "Leave them to the environment (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
            "GOOGLE_APPLICATION_CREDENTIALS …) or to the machine's role.",
        )


def _rollout(rules: Rules, config: Config) -> None:
    rollout, sampling = config.rollout, config.rollout.sampling
    rules.at_least("rollout.teacher_answers", rollout.teacher_answers, 0)
    rules.at_least("rollout.student_answers", rollout.student_answers, 0)
    rules.rule(
        config.group_size >= 2,
        "rollout.teacher_answers + rollout.student_answers",
        "a group of at least 2 answers",
        config.group_size,
        "A group of one has no advantage; the paper uses 4 + 4.",
    )
    rules.rule(
        sampling.temperature > 0,
        "rollout.sampling.temperature",
        "above 0",
        sampling.temperature,
        "The answers of a group must differ; the paper uses 1.0.",
    )
    rules.rule(
        0 < sampling.top_p <= 1,
        "rollout.sampling.top_p",
        "above 0 and at most 1",
        sampling.top_p,
        "The paper uses 0.9.",
    )
    rules.rule(
        sampling.top_k == -1 or sampling.top_k >= 1,
        "rollout.sampling.top_k",
        "at least 1, or -1 for all",
        sampling.top_k,
        "The paper uses 50.",
    )
    rules.rule(
        sampling.repetition_penalty > 0,
        "rollout.sampling.repetition_penalty",
        "above 0",
        sampling.repetition_penalty,
        "The paper uses 1.05.",
    )
    rules.at_least("rollout.sampling.max_tokens", sampling.max_tokens, 1)
    rules.at_least("rollout.batch_rows", rollout.batch_rows, 1)
    _shares(rules, rollout)
    _online(rules, config)


def _online(rules: Rules, config: Config) -> None:
    rollout = config.rollout
    rules.rule(
        0 <= rollout.online_fraction <= 1,
        "rollout.online_fraction",
        "a fraction from 0 to 1",
        rollout.online_fraction,
        "0.2 is a fifth of the iterations.",
    )
    rules.at_least("rollout.max_staleness", rollout.max_staleness, 0)
    rules.rule(
        rollout.max_wait_seconds > 0, "rollout.max_wait_seconds", "above 0", rollout.max_wait_seconds, "Raise it."
    )
    if rollout.online_fraction == 0:
        return
    rules.rule(
        rollout.student_refresh == "run",
        "rollout.student_refresh",
        "run with rollout.online_fraction above 0",
        rollout.student_refresh,
        "The student of every online iteration writes anew already.",
    )
    roles: dict[str, Teacher | Student] = {**_teachers(config), "student": config.student}
    for name, role in roles.items():
        rules.rule(
            role.max_replicas is None or role.max_replicas <= role.replicas,
            f"{name}.max_replicas",
            f"null or {name}.replicas = {role.replicas} with rollout.online_fraction above 0",
            role.max_replicas,
            "Replicas that join would take the room of the learner, which runs beside them.",
        )
    rules.rule(
        config.student.engine.dtype == config.learner.dtype,
        "student.engine.dtype",
        f"learner.dtype = {config.learner.dtype} with rollout.online_fraction above 0",
        config.student.engine.dtype,
        "The weights are handed from the learner to the engine, and the ratio of both sides' probabilities counts.",
    )
    transfer = rollout.weight_transfer
    own_gpus = config.learner.gpus == 1 and config.student.gpus == 1
    rules.rule(
        transfer != "nccl" or own_gpus,
        "rollout.weight_transfer",
        "nccl only with learner.gpus = 1 and student.gpus = 1",
        f"nccl with {config.learner.gpus:g} and {config.student.gpus:g}",
        "auto takes what fits.",
    )
    alone = config.learner.workers == config.student.replicas == config.student.tensor_parallel == 1
    rules.rule(
        transfer != "ipc" or (alone and config.learner.gpus == 1 and config.student.gpus > 0),
        "rollout.weight_transfer",
        "ipc only with one learner worker and one student replica of one rank, on one GPU that they take turns on",
        "ipc",
        "auto takes what fits.",
    )


def _shares(rules: Rules, rollout: Rollout) -> None:
    for key in ("max_set_aside_share", "max_unjudged_share", "max_empty_share", "max_cut_share"):
        share = getattr(rollout, key)
        rules.rule(0 <= share <= 1, f"rollout.{key}", "a fraction from 0 to 1", share, "0.05 is five of a hundred.")


def _teacher(rules: Rules, prefix: str, teacher: Teacher, schedule: Schedule) -> None:
    """One teacher and its schedule. prefix: of their keys."""
    _replicas(rules, f"{prefix}teacher", teacher)
    rules.at_least(f"{prefix}teacher.top_k", teacher.top_k, 1)
    key = f"{prefix}schedule"
    if schedule.stages:
        _listed_stages(rules, f"{key}.stages", schedule)
    else:
        _falling_ratio(rules, key, schedule)
    masked = any(stage.ratio > 0 for stage in schedule.stages) if schedule.stages else schedule.max_ratio > 0
    rules.rule(
        any(vars(teacher.mask).values()) or not masked,
        f"{prefix}teacher.mask",
        "at least one part",
        "none",
        f"Set {prefix}teacher.mask.language=true, or {key}.max_ratio=0.",
    )


def _falling_ratio(rules: Rules, key: str, schedule: Schedule) -> None:
    rules.rule(
        0 <= schedule.max_ratio < 1,
        f"{key}.max_ratio",
        "a fraction from 0 to below 1",
        schedule.max_ratio,
        "It is the share of weights zeroed in the first stage; the paper uses 0.2 or 0.4.",
    )
    rules.rule(schedule.step > 0, f"{key}.step", "above 0", schedule.step, "The paper uses a quarter of max_ratio.")
    if schedule.step > 0 and 0 <= schedule.max_ratio < 1:
        stages = schedule.max_ratio / schedule.step
        rules.rule(
            abs(stages - round(stages)) < _INEXACT,
            f"{key}.step",
            "max_ratio divided by a whole number",
            schedule.step,
            f"{schedule.max_ratio / max(1, round(stages)):g} gives {max(1, round(stages)) + 1} stages.",
        )


def _listed_stages(rules: Rules, key: str, schedule: Schedule) -> None:
    ratios = [stage.ratio for stage in schedule.stages]
    rules.rule(
        all(0 <= ratio < 1 for ratio in ratios),
        key,
        "a ratio from 0 to below 1 in each",
        ratios,
        "It is the share of weights zeroed; write for instance {ratio: 0.2, share: 0.5}.",
    )
    shares = [stage.share for stage in schedule.stages]
    given = [share for share in shares if share is not None]
    rules.rule(
        not given or (len(given) == len(shares) and min(given) > 0 and abs(sum(given) - 1) < _INEXACT),
        key,
        "shares above 0 that add up to 1, or no share at all for equal stages",
        shares,
        "A share is the fraction of the iterations that its stage takes.",
    )
    rules.rule(
        not given or schedule.stage_data == "share",
        key,
        "no shares with stage_data=all, where each stage sees all data",
        shares,
        "Take them out, or set stage_data=share.",
    )


def _replicas(rules: Rules, name: str, role: Teacher | Student) -> None:
    rules.at_least(f"{name}.replicas", role.replicas, 1)
    rules.at_least(f"{name}.tensor_parallel", role.tensor_parallel, 1)
    rules.at_least(f"{name}.cpus", role.cpus, 0)
    rules.at_least(f"{name}.gpus", role.gpus, 0)
    rules.rule(
        role.tensor_parallel == 1 or float(role.gpus).is_integer(),
        f"{name}.gpus",
        f"a whole number with {name}.tensor_parallel = {role.tensor_parallel}",
        role.gpus,
        "Every rank has a GPU of its own.",
    )
    rules.rule(
        role.max_replicas is None or role.max_replicas >= role.replicas,
        f"{name}.max_replicas",
        f"at least {name}.replicas = {role.replicas}, or null for no more than those",
        role.max_replicas,
        "Raise it; more than replicas are added as the cluster finds room.",
    )


def _rewards(rules: Rules, config: Config) -> None:
    judge, reward = config.judge, config.reward
    rules.at_least("reward.alpha", reward.alpha, 0)
    rules.at_least("reward.rho", reward.rho, 0)
    rules.at_least("reward.least_spread", reward.least_spread, 0)
    rules.rule(
        reward.rho == 0 or judge.reasoning,
        "judge.reasoning",
        "true for reward.rho above 0",
        judge.reasoning,
        "Set it, or set reward.rho=0.",
    )
    rules.rule(
        not judge.reasoning or "rule" not in (judge.of_teacher, judge.of_student),
        "judge.reasoning",
        "false when a rule marks the answers of a source",
        judge.reasoning,
        "A rule cannot say whether reasoning supports an answer.",
    )


def _data(rules: Rules, config: Config) -> None:
    rules.rule(
        0 <= config.data.max_quarantined_share <= 1,
        "data.max_quarantined_share",
        "a fraction from 0 to 1",
        config.data.max_quarantined_share,
        "0.01 allows one row in a hundred.",
    )
    rules.rule(
        0 <= config.data.max_unrated_share <= 1,
        "data.max_unrated_share",
        "a fraction from 0 to 1",
        config.data.max_unrated_share,
        "0.25 allows one question in four.",
    )
    rules.rule(
        1 <= config.data.max_picture_pixels <= _PILLOW_MAX_PIXELS,
        "data.max_picture_pixels",
        f"from 1 to {_PILLOW_MAX_PIXELS}, above which Pillow opens no picture",
        config.data.max_picture_pixels,
        "50000000 is a picture of 7000 x 7000 pixels.",
    )
    for name, source in (("train", config.data.train), ("held_out", config.data.held_out)):
        rules.rule(
            bool(source.path),
            f"data.{name}.path",
            f"the file of a {source.format} source",
            source.path,
            "Set it.",
        )
        rules.rule(
            source.rows is None or source.rows >= 1,
            f"data.{name}.rows",
            "at least 1, or null for all",
            source.rows,
            "Raise it.",
        )


def _engines(rules: Rules, config: Config) -> None:
    longest = max(config.rollout.sampling.max_tokens, config.evaluation_tokens)
    key = "rollout.sampling" if longest == config.rollout.sampling.max_tokens else "evaluation"
    roles: dict[str, Teacher | Student] = {**_teachers(config), "student": config.student}
    for name, role in roles.items():
        engine = role.engine
        rules.rule(
            longest < engine.max_model_len,
            f"{name}.engine.max_model_len",
            f"more than {key}.max_tokens = {longest}",
            engine.max_model_len,
            "It holds the prompt and the answer.",
        )
        rules.rule(
            role.gpus > 0 or engine.max_num_batched_tokens >= engine.max_model_len,
            f"{name}.engine.max_num_batched_tokens",
            f"at least max_model_len = {engine.max_model_len} on a CPU",
            engine.max_num_batched_tokens,
            "There a prompt is read in one step.",
        )
        share = role.gpus if 0 < role.gpus < 1 else 1.0
        rules.rule(
            engine.gpu_memory_utilization is None or 0 < engine.gpu_memory_utilization <= share,
            f"{name}.engine.gpu_memory_utilization",
            "above 0 and at most 1"
            if share == 1
            else f"above 0 and at most {name}.gpus = {share:g}: other replicas on the same GPU have the rest",
            engine.gpu_memory_utilization,
            "null takes 0.9 of what the replica reserves.",
        )
        for limit in ("max_model_len", "max_num_seqs", "max_num_batched_tokens", "max_pictures"):
            rules.at_least(f"{name}.engine.{limit}", getattr(engine, limit), 1)
