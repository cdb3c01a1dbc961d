"""What a whole configuration must obey beyond types; touches no file."""

from __future__ import annotations

from typing import Any, get_args

from masters_ray.config.schema import Config, Learner, Part, Rollout, Schedule, Student, Teacher
from masters_ray.errors import Complaint

_PILLOW_MAX_PIXELS = 178_956_970
_INEXACT = 1e-6


def violations(config: Config) -> list[Complaint]:
    """Every broken rule of a whole configuration; touches no file."""
    rules = _Rules()
    _rollout(rules, config)
    _teacher(rules, "", config.teacher, config.schedule)
    for number, further in enumerate(config.growth):
        _teacher(rules, f"growth[{number}].", further.teacher, further.schedule)
    _replicas(rules, "student", config.student)
    for key, found in {
        "judge.replicas": config.judge.replicas,
        "judge.max_tokens": config.judge.max_tokens,
        "evaluation.max_tokens": config.evaluation.max_tokens,
    }.items():
        rules.at_least(key, found, 1)
    rules.at_least("evaluation.examples", config.evaluation.examples, 0)
    _rewards(rules, config)
    _learner(rules, config.learner)
    _data(rules, config)
    _engines(rules, config)
    return rules.broken


class _Rules:
    """Collects those that are broken."""

    def __init__(self) -> None:
        self.broken: list[Complaint] = []

    def rule(self, holds: bool, key: str, expected: str, found: Any, remedy: str) -> None:
        if not holds:
            self.broken.append(Complaint(where=key, expected=expected, found=repr(found), remedy=remedy))

    def at_least(self, key: str, found: float, least: float) -> None:
        self.rule(found >= least, key, f"at least {least}", found, "Raise it.")


def _rollout(rules: _Rules, config: Config) -> None:
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


def _online(rules: _Rules, config: Config) -> None:
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
    roles: dict[str, Teacher | Student] = {"teacher": config.teacher, "student": config.student}
    roles |= {f"growth[{number}].teacher": one.teacher for number, one in enumerate(config.growth)}
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


def _shares(rules: _Rules, rollout: Rollout) -> None:
    for key in ("max_set_aside_share", "max_unjudged_share", "max_empty_share"):
        share = getattr(rollout, key)
        rules.rule(0 <= share <= 1, f"rollout.{key}", "a fraction from 0 to 1", share, "0.05 is five of a hundred.")


def _teacher(rules: _Rules, prefix: str, teacher: Teacher, schedule: Schedule) -> None:
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


def _falling_ratio(rules: _Rules, key: str, schedule: Schedule) -> None:
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


def _listed_stages(rules: _Rules, key: str, schedule: Schedule) -> None:
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


def _replicas(rules: _Rules, name: str, role: Teacher | Student) -> None:
    rules.at_least(f"{name}.replicas", role.replicas, 1)
    rules.at_least(f"{name}.tensor_parallel", role.tensor_parallel, 1)
    rules.at_least(f"{name}.cpus", role.cpus, 0)
    rules.at_least(f"{name}.gpus", role.gpus, 0)
    rules.rule(
        role.max_replicas is None or role.max_replicas >= role.replicas,
        f"{name}.max_replicas",
        f"at least {name}.replicas = {role.replicas}, or null for no more than those",
        role.max_replicas,
        "Raise it; more than replicas are added as the cluster finds room.",
    )


def _rewards(rules: _Rules, config: Config) -> None:
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


def _learner(rules: _Rules, learner: Learner) -> None:
    for key in (
        "workers",
        "groups_per_step",
        "tokens_per_micro_batch",
        "logits_mib",
        "updates_per_step",
        "checkpoint_every",
        "checkpoints_kept",
    ):
        rules.at_least(f"learner.{key}", getattr(learner, key), 1)
    for key in (
        "cpus",
        "warmup_steps",
        "weight_decay",
        "kl_beta",
        "policy_weight",
        "jsd_weight",
        "max_failures",
        "max_skipped_in_a_row",
    ):
        rules.at_least(f"learner.{key}", getattr(learner, key), 0)
    rules.at_least("learner.lora.rank", learner.lora.rank, 0)
    rules.rule(
        learner.policy_weight + learner.jsd_weight > 0,
        "learner.policy_weight",
        "above 0 when learner.jsd_weight is 0",
        learner.policy_weight,
        "Otherwise nothing is learned.",
    )
    rules.rule(
        0 < learner.clip_epsilon < 1,
        "learner.clip_epsilon",
        "above 0 and below 1",
        learner.clip_epsilon,
        "The default is 0.2.",
    )
    rules.rule(
        learner.zero_stage in (0, 1, 2, 3),
        "learner.zero_stage",
        "0, 1, 2 or 3",
        learner.zero_stage,
        "See DeepSpeed's ZeRO stages.",
    )
    rules.rule(learner.gpus in (0, 1), "learner.gpus", "0 or 1", learner.gpus, "Raise learner.workers for more GPUs.")
    rules.at_least("learner.learning_rate", learner.learning_rate, 0)
    rules.rule(
        learner.gradient_clipping > 0,
        "learner.gradient_clipping",
        "above 0",
        learner.gradient_clipping,
        "The default is 1.0.",
    )
    _trained_parts(rules, learner)
    rules.rule(
        learner.dtype == "float32" or learner.zero_stage >= 1,
        "learner.zero_stage",
        "at least 1 for learner.dtype=bfloat16",
        learner.zero_stage,
        "DeepSpeed sums bfloat16 gradients in float32 from stage 1 on; it works with one worker too.",
    )
    least = {"nothing": 0, "optimizer": 1, "everything": 3}[learner.offload]
    rules.rule(
        learner.zero_stage >= least,
        "learner.zero_stage",
        f"at least {least} for learner.offload={learner.offload}",
        learner.zero_stage,
        "ZeRO offloads what it partitions.",
    )


def _trained_parts(rules: _Rules, learner: Learner) -> None:
    parts = get_args(Part)
    rules.rule(
        set(learner.frozen) < set(parts),
        "learner.frozen",
        f"some of {', '.join(parts)}, but not all",
        list(learner.frozen),
        "The paper freezes vision.",
    )
    rules.rule(
        learner.lora.rank == 0 or "language" not in learner.frozen,
        "learner.frozen",
        "no language with learner.lora.rank above 0, since adapters train the language model",
        list(learner.frozen),
        "Take language out, or set learner.lora.rank=0.",
    )
    rules.rule(
        learner.lora.rank == 0 or learner.lora.alpha > 0,
        "learner.lora.alpha",
        "above 0",
        learner.lora.alpha,
        "Twice the rank is a common choice.",
    )


def _data(rules: _Rules, config: Config) -> None:
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
            source.format == "easy_vqa" or bool(source.path),
            f"data.{name}.path",
            f"the file of a {source.format} source",
            source.path,
            "Set it, or choose format=easy_vqa.",
        )
        rules.rule(
            source.rows is None or source.rows >= 1,
            f"data.{name}.rows",
            "at least 1, or null for all",
            source.rows,
            "Raise it.",
        )


def _engines(rules: _Rules, config: Config) -> None:
    longest = config.rollout.sampling.max_tokens
    roles: dict[str, Teacher | Student] = {"teacher": config.teacher, "student": config.student}
    roles |= {f"growth[{number}].teacher": one.teacher for number, one in enumerate(config.growth)}
    for name, role in roles.items():
        engine = role.engine
        rules.rule(
            longest < engine.max_model_len,
            f"{name}.engine.max_model_len",
            f"more than rollout.sampling.max_tokens = {longest}",
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
        rules.rule(
            0 < engine.gpu_memory_utilization <= 1,
            f"{name}.engine.gpu_memory_utilization",
            "above 0 and at most 1",
            engine.gpu_memory_utilization,
            "0.9 is vLLM's default.",
        )
        for key in ("max_model_len", "max_num_seqs", "max_num_batched_tokens", "max_pictures"):
            rules.at_least(f"{name}.engine.{key}", getattr(engine, key), 1)
