"""What a whole configuration must obey beyond types; touches no file."""

from __future__ import annotations

from typing import Any, get_args

from masters_ray.config.schema import Config, Part
from masters_ray.errors import Complaint

_PILLOW_MAX_PIXELS = 178_956_970


def violations(config: Config) -> list[Complaint]:
    """Every broken rule of a whole configuration; touches no file."""
    complaints: list[Complaint] = []

    def rule(holds: bool, key: str, expected: str, found: Any, remedy: str) -> None:
        if not holds:
            complaints.append(Complaint(where=key, expected=expected, found=repr(found), remedy=remedy))

    def at_least(key: str, found: float, least: float) -> None:
        rule(found >= least, key, f"at least {least}", found, "Raise it.")

    rollout, schedule, learner, teacher = config.rollout, config.schedule, config.learner, config.teacher
    at_least("rollout.teacher_answers", rollout.teacher_answers, 0)
    at_least("rollout.student_answers", rollout.student_answers, 0)
    rule(
        config.group_size >= 2,
        "rollout.teacher_answers + rollout.student_answers",
        "a group of at least 2 answers",
        config.group_size,
        "A group of one has no advantage; the paper uses 4 + 4.",
    )
    sampling = rollout.sampling
    rule(
        sampling.temperature > 0,
        "rollout.sampling.temperature",
        "above 0",
        sampling.temperature,
        "The answers of a group must differ; the paper uses 1.0.",
    )
    rule(
        0 < sampling.top_p <= 1,
        "rollout.sampling.top_p",
        "above 0 and at most 1",
        sampling.top_p,
        "The paper uses 0.9.",
    )
    rule(
        sampling.top_k == -1 or sampling.top_k >= 1,
        "rollout.sampling.top_k",
        "at least 1, or -1 for all",
        sampling.top_k,
        "The paper uses 50.",
    )
    rule(
        sampling.repetition_penalty > 0,
        "rollout.sampling.repetition_penalty",
        "above 0",
        sampling.repetition_penalty,
        "The paper uses 1.05.",
    )
    rule(
        0 <= schedule.max_ratio < 1,
        "schedule.max_ratio",
        "a fraction from 0 to below 1",
        schedule.max_ratio,
        "It is the share of weights zeroed in the first stage; the paper uses 0.2 or 0.4.",
    )
    rule(schedule.step > 0, "schedule.step", "above 0", schedule.step, "The paper uses a quarter of max_ratio.")
    if schedule.step > 0 and 0 <= schedule.max_ratio < 1:
        stages = schedule.max_ratio / schedule.step
        rule(
            abs(stages - round(stages)) < 1e-6,
            "schedule.step",
            "max_ratio divided by a whole number",
            schedule.step,
            f"{schedule.max_ratio / max(1, round(stages)):g} gives {max(1, round(stages)) + 1} stages.",
        )
    rule(
        any(vars(teacher.mask).values()) or schedule.max_ratio == 0,
        "teacher.mask",
        "at least one part",
        "none",
        "Set teacher.mask.language=true, or schedule.max_ratio=0.",
    )
    for key, found in {
        "teacher.replicas": teacher.replicas,
        "student.replicas": config.student.replicas,
        "judge.replicas": config.judge.replicas,
        "teacher.tensor_parallel": teacher.tensor_parallel,
        "student.tensor_parallel": config.student.tensor_parallel,
        "teacher.top_k": teacher.top_k,
        "rollout.sampling.max_tokens": sampling.max_tokens,
        "rollout.batch_rows": rollout.batch_rows,
        "judge.max_tokens": config.judge.max_tokens,
        "evaluation.max_tokens": config.evaluation.max_tokens,
        "learner.workers": learner.workers,
        "learner.groups_per_step": learner.groups_per_step,
        "learner.tokens_per_micro_batch": learner.tokens_per_micro_batch,
        "learner.logits_mib": learner.logits_mib,
        "learner.updates_per_step": learner.updates_per_step,
        "learner.checkpoint_every": learner.checkpoint_every,
        "learner.checkpoints_kept": learner.checkpoints_kept,
    }.items():
        at_least(key, found, 1)
    for name, role in (("teacher", teacher), ("student", config.student)):
        rule(
            role.max_replicas is None or role.max_replicas >= role.replicas,
            f"{name}.max_replicas",
            f"at least {name}.replicas = {role.replicas}, or null for no more than those",
            role.max_replicas,
            "Raise it; more than replicas are added as the cluster finds room.",
        )
    amounts: dict[str, float] = {
        "teacher.cpus": teacher.cpus,
        "teacher.gpus": teacher.gpus,
        "student.cpus": config.student.cpus,
        "student.gpus": config.student.gpus,
        "learner.cpus": learner.cpus,
        "learner.warmup_steps": learner.warmup_steps,
        "learner.weight_decay": learner.weight_decay,
        "learner.kl_beta": learner.kl_beta,
        "learner.jsd_weight": learner.jsd_weight,
        "learner.lora.rank": learner.lora.rank,
        "learner.max_failures": learner.max_failures,
        "learner.max_skipped_in_a_row": learner.max_skipped_in_a_row,
        "learner.policy_weight": learner.policy_weight,
        "reward.alpha": config.reward.alpha,
        "reward.rho": config.reward.rho,
        "evaluation.examples": config.evaluation.examples,
    }
    for key, amount in amounts.items():
        at_least(key, amount, 0)
    rule(
        learner.policy_weight + learner.jsd_weight > 0,
        "learner.policy_weight",
        "above 0 when learner.jsd_weight is 0",
        learner.policy_weight,
        "Otherwise nothing is learned.",
    )
    rule(
        config.reward.rho == 0 or config.judge.reasoning,
        "judge.reasoning",
        "true for reward.rho above 0",
        config.judge.reasoning,
        "Set it, or set reward.rho=0.",
    )
    rule(
        not config.judge.reasoning or "rule" not in (config.judge.of_teacher, config.judge.of_student),
        "judge.reasoning",
        "false when a rule marks the answers of a source",
        config.judge.reasoning,
        "A rule cannot say whether reasoning supports an answer.",
    )
    rule(
        0 < learner.clip_epsilon < 1,
        "learner.clip_epsilon",
        "above 0 and below 1",
        learner.clip_epsilon,
        "The default is 0.2.",
    )
    rule(
        learner.zero_stage in (0, 1, 2, 3),
        "learner.zero_stage",
        "0, 1, 2 or 3",
        learner.zero_stage,
        "See DeepSpeed's ZeRO stages.",
    )
    rule(learner.gpus in (0, 1), "learner.gpus", "0 or 1", learner.gpus, "Raise learner.workers for more GPUs.")
    rule(learner.learning_rate > 0, "learner.learning_rate", "above 0", learner.learning_rate, "The paper uses 1e-6.")
    rule(
        learner.gradient_clipping > 0,
        "learner.gradient_clipping",
        "above 0",
        learner.gradient_clipping,
        "The default is 1.0.",
    )
    parts = get_args(Part)
    rule(
        set(learner.frozen) < set(parts),
        "learner.frozen",
        f"some of {', '.join(parts)}, but not all",
        list(learner.frozen),
        "The paper freezes vision.",
    )
    rule(
        learner.lora.rank == 0 or "language" not in learner.frozen,
        "learner.frozen",
        "no language with learner.lora.rank above 0, since adapters train the language model",
        list(learner.frozen),
        "Take language out, or set learner.lora.rank=0.",
    )
    rule(
        learner.lora.rank == 0 or learner.lora.alpha > 0,
        "learner.lora.alpha",
        "above 0",
        learner.lora.alpha,
        "Twice the rank is a common choice.",
    )
    rule(
        learner.dtype == "float32" or learner.zero_stage >= 1,
        "learner.zero_stage",
        "at least 1 for learner.dtype=bfloat16",
        learner.zero_stage,
        "DeepSpeed sums bfloat16 gradients in float32 from stage 1 on; it works with one worker too.",
    )
    least = {"nothing": 0, "optimizer": 1, "everything": 3}[learner.offload]
    rule(
        learner.zero_stage >= least,
        "learner.zero_stage",
        f"at least {least} for learner.offload={learner.offload}",
        learner.zero_stage,
        "ZeRO offloads what it partitions.",
    )
    for key in ("max_set_aside_share", "max_unjudged_share", "max_empty_share"):
        share = getattr(rollout, key)
        rule(0 <= share <= 1, f"rollout.{key}", "a fraction from 0 to 1", share, "0.05 is five of a hundred.")
    rule(
        0 <= config.data.max_quarantined_share <= 1,
        "data.max_quarantined_share",
        "a fraction from 0 to 1",
        config.data.max_quarantined_share,
        "0.01 allows one row in a hundred.",
    )
    rule(
        1 <= config.data.max_picture_pixels <= _PILLOW_MAX_PIXELS,
        "data.max_picture_pixels",
        f"from 1 to {_PILLOW_MAX_PIXELS}, above which Pillow opens no picture",
        config.data.max_picture_pixels,
        "50000000 is a picture of 7000 x 7000 pixels.",
    )
    for name, source in (("train", config.data.train), ("held_out", config.data.held_out)):
        rule(
            source.format == "easy_vqa" or bool(source.path),
            f"data.{name}.path",
            f"the file of a {source.format} source",
            source.path,
            "Set it, or choose format=easy_vqa.",
        )
        rule(
            source.rows is None or source.rows >= 1,
            f"data.{name}.rows",
            "at least 1, or null for all",
            source.rows,
            "Raise it.",
        )
    for name, role in (("teacher", teacher), ("student", config.student)):
        engine = role.engine
        rule(
            sampling.max_tokens < engine.max_model_len,
            f"{name}.engine.max_model_len",
            f"more than rollout.sampling.max_tokens = {sampling.max_tokens}",
            engine.max_model_len,
            "It holds the prompt and the answer.",
        )
        rule(
            role.gpus > 0 or engine.max_num_batched_tokens >= engine.max_model_len,
            f"{name}.engine.max_num_batched_tokens",
            f"at least max_model_len = {engine.max_model_len} on a CPU",
            engine.max_num_batched_tokens,
            "There a prompt is read in one step.",
        )
        rule(
            0 < engine.gpu_memory_utilization <= 1,
            f"{name}.engine.gpu_memory_utilization",
            "above 0 and at most 1",
            engine.gpu_memory_utilization,
            "0.9 is vLLM's default.",
        )
        for key in ("max_model_len", "max_num_seqs", "max_num_batched_tokens", "max_pictures"):
            at_least(f"{name}.engine.{key}", getattr(engine, key), 1)
    return complaints
