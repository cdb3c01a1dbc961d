"""What the keys of a configuration must obey together; touches no file. Bounds of single keys stand in the schema."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, get_args

from masters_ray.config.schema import Config, HostedModel, Learner, MaskScope, Part, Rollout, Schedule, Teacher
from masters_ray.errors import Complaint

Broken = tuple[str, str, Any, str]
"""Of a broken rule: key, what was expected, what was found, remedy."""
_INEXACT = 1e-6
_ONLINE = "with rollout.online_fraction above 0"


def broken(config: Config, known: set[str]) -> Iterator[Complaint]:
    """A complaint for every broken rule. known: keys that have a complaint and here their default; rules that name them
    are left out."""
    for key, expected, found, remedy in _all(config):
        if known.isdisjoint(re.findall(r"[\w.\[\]]+", f"{key} {expected}")):
            yield Complaint(where=key, expected=expected, found=repr(found), remedy=remedy)


def _all(config: Config) -> Iterator[Broken]:
    yield from _rollout(config)
    if config.rollout.online_fraction > 0:
        yield from _online(config, config.rollout)
    for number, (name, model) in enumerate(config.models.items()):
        yield from _replicas(name, model)
        yield from _engine(name, model, config)
        if isinstance(model, Teacher):
            yield from _schedule(name, model.mask, config.schedules[number])
    yield from _learner(config.learner)
    for name, source in (("train", config.data.train), ("held_out", config.data.held_out)):
        if not source.path:
            yield f"data.{name}.path", f"a {source.format} file", source.path, "Set it."


def _rollout(config: Config) -> Iterator[Broken]:
    judge = config.judge
    if config.group_size < 2:
        key = "rollout.teacher_answers + rollout.student_answers"
        yield key, "a group of at least 2 answers", config.group_size, "A group of one has no advantage."
    if config.reward.rho > 0 and not judge.reasoning:
        yield "judge.reasoning", "true for reward.rho above 0", False, "Set it, or set reward.rho=0."
    if judge.reasoning and "rule" in (judge.of_teacher, judge.of_student):
        expected = "false where judge.of_teacher or judge.of_student is rule"
        yield "judge.reasoning", expected, True, "A rule cannot say whether reasoning supports an answer."


def _online(config: Config, rollout: Rollout) -> Iterator[Broken]:
    learner, student, transfer = config.learner, config.student, rollout.weight_transfer
    if rollout.student_refresh != "run":
        remedy = "The student of every online iteration writes anew already."
        yield "rollout.student_refresh", f"run {_ONLINE}", rollout.student_refresh, remedy
    for name, model in config.models.items():
        if model.max_replicas is not None and model.max_replicas > model.replicas:
            expected = f"null or {name}.replicas = {model.replicas} {_ONLINE}"
            remedy = "Replicas that join would take the room of the learner, which runs beside them."
            yield f"{name}.max_replicas", expected, model.max_replicas, remedy
    if student.engine.dtype != learner.dtype:
        expected = f"learner.dtype = {learner.dtype} {_ONLINE}"
        remedy = "The learner hands its weights to the engine, and the ratio of both sides' probabilities counts."
        yield "student.engine.dtype", expected, student.engine.dtype, remedy
    if transfer == "nccl" and not learner.gpus == student.gpus == 1:
        found = f"nccl with {learner.gpus:g} and {student.gpus:g}"
        expected = "nccl only with learner.gpus = 1 and student.gpus = 1"
        yield "rollout.weight_transfer", expected, found, "auto takes what fits."


def _schedule(teacher: str, mask: MaskScope, schedule: Schedule) -> Iterator[Broken]:
    """teacher: its key."""
    key = f"{teacher.removesuffix('teacher')}schedule"
    ratios = [stage.ratio for stage in schedule.stages] or [schedule.max_ratio]
    if max(ratios) > 0 and not any(vars(mask).values()):
        remedy = f"Set {teacher}.mask.language=true, or {key}.max_ratio=0."
        yield f"{teacher}.mask", "at least one part", "none", remedy
    count = schedule.max_ratio / schedule.step
    if not schedule.stages and abs(count - round(count)) >= _INEXACT:
        whole = max(1, round(count))
        remedy = f"{schedule.max_ratio / whole:g} gives {whole + 1} stages."
        yield f"{key}.step", f"{key}.max_ratio divided by a whole number", schedule.step, remedy
    shares = [stage.share for stage in schedule.stages]
    given = [share for share in shares if share is not None]
    if given and (len(given) < len(shares) or abs(sum(given) - 1) >= _INEXACT):
        expected = "shares that add up to 1, or no share at all for equal stages"
        yield f"{key}.stages", expected, shares, "A share is the fraction of the iterations that its stage takes."
    if given and schedule.stage_data == "all":
        expected = f"no shares with {key}.stage_data=all, where each stage sees all data"
        yield f"{key}.stages", expected, shares, "Take them out, or set stage_data=share."


def _replicas(name: str, model: HostedModel) -> Iterator[Broken]:
    ranks, most = model.tensor_parallel, model.max_replicas
    if ranks > 1 and not float(model.gpus).is_integer():
        expected = f"a whole number with {name}.tensor_parallel = {ranks}"
        yield f"{name}.gpus", expected, model.gpus, "Every rank has a GPU of its own."
    if most is not None and most < model.replicas:
        expected = f"at least {name}.replicas = {model.replicas}, or null for no more than those"
        remedy = "Raise it; more than replicas are added as the cluster finds room."
        yield f"{name}.max_replicas", expected, most, remedy


def _engine(name: str, model: HostedModel, config: Config) -> Iterator[Broken]:
    engine, written = model.engine, config.rollout.sampling.max_tokens
    longest = max(written, config.evaluation_tokens)
    key = "rollout.sampling.max_tokens" if longest == written else "evaluation.max_tokens"
    if longest >= engine.max_model_len:
        remedy = "It holds the prompt and the answer."
        yield f"{name}.engine.max_model_len", f"more than {key} = {longest}", engine.max_model_len, remedy
    if model.gpus == 0 and engine.max_num_batched_tokens < engine.max_model_len:
        expected = f"at least {name}.engine.max_model_len = {engine.max_model_len} on a CPU"
        remedy = "There a prompt is read in one step."
        yield f"{name}.engine.max_num_batched_tokens", expected, engine.max_num_batched_tokens, remedy
    share = model.gpus if 0 < model.gpus < 1 else 1.0
    if (engine.gpu_memory_utilization or 0.0) > share:
        others = f" {name}.gpus = {share:g}: other replicas on the same GPU have the rest" if share < 1 else " 1"
        remedy = "null takes 0.9 of what the replica reserves."
        yield f"{name}.engine.gpu_memory_utilization", f"at most{others}", engine.gpu_memory_utilization, remedy


def _learner(learner: Learner) -> Iterator[Broken]:
    frozen, parts = list(learner.frozen), get_args(Part)
    if learner.policy_weight + learner.jsd_weight == 0:
        yield "learner.policy_weight", "above 0 when learner.jsd_weight is 0", 0, "Otherwise nothing is learned."
    if set(frozen) == set(parts):
        yield "learner.frozen", f"some of {', '.join(parts)}, but not all", frozen, "The paper freezes vision."
    if learner.lora.rank and "language" in frozen:
        expected = "no language with learner.lora.rank above 0, since adapters train the language model"
        yield "learner.frozen", expected, frozen, "Take language out, or set learner.lora.rank=0."
    if learner.dtype == "bfloat16" and learner.zero_stage == 0:
        remedy = "DeepSpeed sums bfloat16 gradients in float32 from stage 1 on; it works with one worker too."
        yield "learner.zero_stage", "at least 1 for learner.dtype=bfloat16", 0, remedy
    least = {"nothing": 0, "optimizer": 1, "everything": 3}[learner.offload]
    if learner.zero_stage < least:
        expected = f"at least {least} for learner.offload={learner.offload}"
        yield "learner.zero_stage", expected, learner.zero_stage, "ZeRO offloads what it partitions."
