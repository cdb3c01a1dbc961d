"""Rules across the keys of a configuration; touches no file. Bounds of single keys are in the schema."""

import re
from collections.abc import Iterator, Sequence
from typing import Any, get_args

from masters_ray.config.data_schema import DataSource, keys_of
from masters_ray.config.schema import Config, HostedModel, Learner, MaskScope, Part, Schedule, Teacher
from masters_ray.errors import Complaint

Broken = tuple[str, str, Any, str]
"""A broken rule: key, what was expected (with the keys that decide it), what was found, remedy."""
_INEXACT = 1e-6
_ONLINE = "with rollout.online_fraction above 0"


def broken(config: Config, known: set[str]) -> Iterator[Complaint]:
    """Yields a complaint for every broken rule. known: keys that have a complaint already; skips rules that name one of
    them, since its value was replaced."""
    for key, expected, found, remedy in _all(config):
        if known.isdisjoint(re.findall(r"[\w.\[\]]+", f"{key} {expected}")):
            yield Complaint(key, expected, repr(found), remedy)


def _all(config: Config) -> Iterator[Broken]:
    judge = config.judge
    if config.group_size < 2:
        key = "rollout.teacher_answers + rollout.student_answers"
        yield key, "a group of at least 2 answers", config.group_size, "A group of one has no advantage."
    if config.reward.rho > 0 and not judge.reasoning:
        yield "judge.reasoning", "true for reward.rho above 0", False, "Set it, or set reward.rho=0."
    if judge.reasoning and "rule" in (judge.of_teacher, judge.of_student):
        yield "judge.reasoning", "false where judge.of_teacher or judge.of_student is rule", True, "A rule reads none."
    if config.rollout.online_fraction > 0:
        yield from _online(config)
    if config.learner.keep == "best" and config.evaluation.every is None:
        yield "evaluation.every", "steps or stage with learner.keep=best", None, "Set it, or set learner.keep=last."
    yield from _sources("data.train", config.data.train)
    yield from _sources("data.held_out", config.data.held_out)
    for key, source in zip(keys_of("data.train", config.data.train), config.data.train, strict=True):
        if judge.reasoning and source.rule not in (None, "judge"):
            expected = "null or judge with judge.reasoning"
            yield f"{key}.rule", expected, source.rule, "A rule reads none."
        if source.rule == "judge" and "rule" in (judge.of_teacher, judge.of_student):
            expected = "another than judge where judge.of_teacher or judge.of_student is rule"
            yield f"{key}.rule", expected, "judge", "Name who judges there."
    for (name, model), schedule in zip(config.models.items(), [*config.schedules, None], strict=True):
        yield from _model(name, model, config)
        if isinstance(model, Teacher) and schedule is not None:
            yield from _schedule(name, model.mask, schedule)
    yield from _learner(config.learner)


def _sources(section: str, sources: Sequence[DataSource]) -> Iterator[Broken]:
    names = [source.name for source in sources]
    weights = [source.weight for source in sources]
    for key, source in zip(keys_of(section, sources), sources, strict=True):
        if len(sources) > 1 and (not source.name or names.count(source.name) > 1):
            yield f"{key}.name", "a name of its own, as for all of several sources", source.name, "It begins rows' ids."
        if source.weight is None and any(weights):
            yield f"{key}.weight", f"a weight in all of {section} or in none", None, "It is relative to the others'."
        if source.subset and not source.split:
            yield f"{key}.split", "a split beside subset", None, "Data sets on the Hub have splits such as train."
        fields = source.fields
        if fields.turns is None and not (fields.question and fields.answer):
            yield f"{key}.fields", "keys for question and answer, or turns", "none", "Name them as the rows have them."


def _online(config: Config) -> Iterator[Broken]:
    learner, student, rollout = config.learner, config.student, config.rollout
    if rollout.student_refresh != "run":
        yield "rollout.student_refresh", f"run {_ONLINE}", rollout.student_refresh, "The student writes anew already."
    if student.engine.dtype != learner.dtype:
        expected = f"learner.dtype = {learner.dtype} {_ONLINE}"
        yield "student.engine.dtype", expected, student.engine.dtype, "The learner hands its weights to the engine."
    if rollout.weight_transfer == "nccl" and not learner.gpus == student.gpus == 1:
        expected = "nccl only with learner.gpus = student.gpus = 1"
        yield "rollout.weight_transfer", expected, f"{learner.gpus:g} and {student.gpus:g}", "auto takes what fits."


def _schedule(teacher: str, mask: MaskScope, schedule: Schedule) -> Iterator[Broken]:
    """teacher: the teacher's key, such as ``growth[0].teacher``."""
    key = f"{teacher.removesuffix('teacher')}schedule"
    ratios = [stage.ratio for stage in schedule.stages] or [schedule.max_ratio]
    if max(ratios) > 0 and not any(vars(mask).values()):
        yield f"{teacher}.mask", "at least one part", "none", f"Set {teacher}.mask.language=true, or ratios of 0."
    count = schedule.max_ratio / schedule.step
    if not schedule.stages and abs(count - round(count)) >= _INEXACT:
        yield f"{key}.step", f"{key}.max_ratio divided by a whole number", schedule.step, "It falls to 0."
    shares = [stage.share for stage in schedule.stages]
    given = [share for share in shares if share is not None]
    if given and (len(given) < len(shares) or abs(sum(given) - 1) >= _INEXACT or schedule.stage_data == "all"):
        expected = f"shares that add up to 1, or none, as with {key}.stage_data=all"
        yield f"{key}.stages", expected, shares, "A share is the fraction of the iterations that its stage takes."


def _model(name: str, model: HostedModel, config: Config) -> Iterator[Broken]:
    engine, longest = model.engine, max(config.rollout.sampling.max_tokens, config.evaluation_tokens)
    if model.tensor_parallel > 1 and not float(model.gpus).is_integer():
        expected = f"a whole number with {name}.tensor_parallel = {model.tensor_parallel}"
        yield f"{name}.gpus", expected, model.gpus, "Every rank has a GPU of its own."
    if longest >= engine.max_model_len:
        expected = f"more than {longest} (rollout.sampling.max_tokens, evaluation.max_tokens)"
        yield f"{name}.engine.max_model_len", expected, engine.max_model_len, "It holds prompt and answer."
    if model.gpus == 0 and engine.max_num_batched_tokens < engine.max_model_len:
        key, expected = f"{name}.engine.max_num_batched_tokens", f"at least {name}.engine.max_model_len on a CPU"
        yield key, expected, engine.max_num_batched_tokens, "There a prompt is read in one step."
    share = model.gpus if 0 < model.gpus < 1 else 1.0
    if (engine.gpu_memory_utilization or 0.0) > share:
        key, expected = f"{name}.engine.gpu_memory_utilization", f"at most {share:g}, as {name}.gpus reserves"
        yield key, expected, engine.gpu_memory_utilization, "null takes 0.9 of what the replica reserves."


def _learner(learner: Learner) -> Iterator[Broken]:
    frozen = learner.frozen
    if learner.policy_weight + learner.jsd_weight == 0:
        yield "learner.policy_weight", "above 0 when learner.jsd_weight is 0", 0, "Otherwise nothing is learned."
    if set(frozen) == set(get_args(Part)):
        yield "learner.frozen", "some parts, but not all", frozen, "The paper freezes vision."
    if learner.lora.rank and "language" in frozen:
        yield "learner.frozen", "no language with learner.lora.rank above 0", frozen, "Adapters train just that part."
    if learner.dtype == "bfloat16" and learner.zero_stage == 0:
        yield "learner.zero_stage", "at least 1 for learner.dtype=bfloat16", 0, "DeepSpeed then sums in float32."
    least = {"nothing": 0, "optimizer": 1, "everything": 3}[learner.offload]
    if learner.zero_stage < least:
        yield "learner.zero_stage", f"at least {least} for this learner.offload", learner.zero_stage, "Or offload less."
