"""Checks that checkpoints are complete and usable, and that teacher and student fit each other. Reads only headers and
JSON files."""

import math
import os
from pathlib import Path

from masters_ray.checks.context import CheckContext, Findings, NotChecked, guarded
from masters_ray.errors import Complaint
from masters_ray.method.schedule import ratios
from masters_ray.models import special_tokens, weights
from masters_ray.parts import is_unknown, matrices_in, part_of, parts_in


def located(context: CheckContext) -> Findings:
    """Checks that checkpoints are here and complete; one of the Hub that is not downloaded yet is not checked."""
    for name in context.config.models:
        expected = "a directory, or a model id of the Hub, with a checkpoint in safetensors, tokenizer and processor"
        yield from guarded(f"{name}.checkpoint", expected, _located(context, name))


def _located(context: CheckContext, name: str) -> Findings:
    checkpoint = context.config.models[name].checkpoint
    if (folder := weights.locate_locally(checkpoint)) is None:
        yield NotChecked(f"{name}.checkpoint: {checkpoint} is not downloaded yet and was not checked")
        return
    weights.check(folder)
    context.folders[name] = folder


def student(context: CheckContext) -> Findings:
    """Checks that the student's weights can be trained, and that learner.frozen suits tied embeddings."""
    if (folder := context.folders.get("student")) is None:
        return
    learner, content = context.config.learner, weights.read_json(folder / "config.json")
    tied = content.get("tie_word_embeddings", content.get("text_config", {}).get("tie_word_embeddings", False))
    if tied and not learner.lora.rank and len({"embeddings", "lm_head"} & set(learner.frozen)) == 1:
        expected = f"both or neither of embeddings and lm_head: in {folder} they are one matrix"
        yield Complaint("learner.frozen", expected, str(list(learner.frozen)), "Name both, or take it out.")
    yield from _quantised("student", "trained", folder)


def lengths(context: CheckContext) -> Findings:
    """Checks that no engine's max_model_len exceeds the positions of its model, scaled by the whole factor of its RoPE.
    vLLM, which knows which kinds of scaling count, may refuse a smaller one."""
    for name, folder in context.folders.items():
        whole = weights.read_json(folder / "config.json")
        text = whole.get("text_config") or whole
        scaling = text.get("rope_parameters") or text.get("rope_scaling") or {}
        longest = text.get("max_position_embeddings", math.inf) * max(1.0, scaling.get("factor") or 1.0)
        asked = context.config.models[name].engine.max_model_len
        if asked > longest and os.environ.get("VLLM_ALLOW_LONG_MAX_MODEL_LEN") != "1":
            key, expected = f"{name}.engine.max_model_len", f"at most {longest:.0f}, the positions of {folder}"
            yield Complaint(key, expected, str(asked), f"Set {key}={longest:.0f}, or less.")


def teachers(context: CheckContext) -> Findings:
    """Checks that each teacher can be masked, and compared with the student token by token."""
    ours = context.folders.get("student")
    for number, name in enumerate(list(context.config.models)[:-1]):
        if (folder := context.folders.get(name)) is None:
            continue
        yield from _masked(context, number, name, folder)
        top_k, vocabulary = context.config.of_teacher(number).teacher.top_k, weights.vocabulary(folder)
        if vocabulary is not None and top_k > vocabulary:
            expected = f"at most the vocabulary's {vocabulary}"
            yield Complaint(f"{name}.top_k", expected, str(top_k), "50 keeps nearly all of the mass.")
        if ours is not None:
            yield from _comparable(context, name, folder, ours)
            yield from ends(name, folder, ours)


def ends(name: str, teacher: Path, student: Path) -> Findings:
    """Checks that teacher and student share an end token. name: the teacher's key in the configuration. Raises
    CheckpointError when a checkpoint names no end token."""
    theirs, ours = special_tokens.end_ids(teacher), special_tokens.end_ids(student)
    if not theirs & ours:
        expected = f"a token that ends answers of {name} too: {sorted(theirs) or 'none'} in {teacher}"
        remedy = "Give generation_config.json of either the eos_token_id of the other, if its chat template ends so."
        yield Complaint("student.checkpoint", expected, f"{sorted(ours) or 'none'} in {student}", remedy)
    elif theirs != ours:
        kept = f"; {name} is kept from writing {sorted(theirs - ours)}" if theirs - ours else ""
        yield f"answers of {name} end with tokens {sorted(theirs)}, the student's with {sorted(ours)}{kept}"


def _masked(context: CheckContext, number: int, name: str, folder: Path) -> Findings:
    """Checks that a teacher with a mask, or a live one, is not quantised, has matrices to mask, and no unknown ones."""
    one = context.config.of_teacher(number)
    if not any(ratio > 0 for ratio, _ in ratios(one.schedule)) and context.config.learner.teacher == "stored":
        return
    if complaints := list(_quantised(name, "masked", folder)):
        yield from complaints
        return
    held = weights.headers(folder)
    parts = parts_in(one.teacher.mask)
    if not any(matrices_in(weight, entry.shape) for weight, entry in held.items() if part_of(weight) in parts):
        expected = f"matrices of {' or '.join(parts) or 'some part'} in {folder}"
        remedy = "A mask would do nothing: name other parts, or set all ratios to 0."
        yield Complaint(f"{name}.mask", expected, "none", remedy)
    if unknown := sorted(weight for weight, entry in held.items() if is_unknown(weight, entry.shape)):
        matrices = sum(matrices_in(weight, entry.shape) for weight, entry in held.items())
        found = f"{len(unknown)} of {matrices} matrices in no known part: {weights.some(unknown)}"
        expected = "weights whose names say which part of the model they belong to"
        remedy = "This model's family is not supported as a masked teacher."
        yield Complaint(f"{name}.checkpoint", expected, found, remedy)


def _quantised(name: str, to_be: str, folder: Path) -> Findings:
    if packed := weights.quantisation(folder):
        expected = f"weights that can be {to_be}: float32, float16 or bfloat16"
        remedy = "Take the checkpoint that it was made of; a teacher whose ratios are all 0 may be quantised."
        yield Complaint(f"{name}.checkpoint", expected, f"{folder}, which is quantised: {packed}", remedy)


def _comparable(context: CheckContext, name: str, teacher: Path, student: Path) -> Findings:
    theirs, ours = weights.tokenizer_identity(teacher), weights.tokenizer_identity(student)
    if different := [part for part in ours if ours[part] != theirs[part]]:
        found = f"{student}, which differs in {', '.join(different)}"
        remedy = "Distributions can only be compared token by token: choose a pair of one family."
        yield Complaint("student.checkpoint", f"the tokenizer of the teacher ({teacher})", found, remedy)
    if weights.prompt_digest(teacher) == weights.prompt_digest(student):
        return
    if context.config.learner.teacher == "live":
        expected = f"stored, since {name} makes other prompts than the student"
        remedy = "A live teacher reads the student's own prompts: processor files and chat templates must be equal."
        yield Complaint("learner.teacher", expected, "live", remedy)
    else:
        yield f"{name} has other processor files or another chat template than the student: their prompts may differ"
