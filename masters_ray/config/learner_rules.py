"""What the learner's section must obey beyond types."""

from __future__ import annotations

from typing import get_args

from masters_ray.config.complaints import Rules
from masters_ray.config.schema import Learner, Part


def check(rules: Rules, learner: Learner) -> None:
    """Complain of what is broken."""
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
    rules.at_least("learner.max_logprob_gap", learner.max_logprob_gap or 0.0, 0)
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


def _trained_parts(rules: Rules, learner: Learner) -> None:
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
