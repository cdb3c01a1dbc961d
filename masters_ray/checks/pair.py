"""Checks that checkpoints are complete and usable, and that teacher and student fit each other. Reads only headers and
JSON files."""

import math
import os
from pathlib import Path

from masters_ray.checks.context import CheckContext
from masters_ray.families import ELSEWHERE, UNKNOWN, parts_in
from masters_ray.method.schedule import ratios
from masters_ray.models import weights
from masters_ray.progress import say, warn


def located(context: CheckContext) -> None:
    """Checks that checkpoints are here and complete; one of the Hub that is not downloaded yet is not checked."""
    expected = "a directory, or a model id of the Hub, with a checkpoint in safetensors, tokenizer and processor"
    for name, model in context.config.models.items():
        with context.guarded(key := f"{name}.checkpoint", expected):
            if (folder := weights.locate_locally(model.checkpoint)) is None:
                context.not_checked.append(f"{key}: {model.checkpoint} is not downloaded yet and was not checked")
            else:
                weights.check(folder)
                context.folders[name] = folder


def models(context: CheckContext) -> None:
    """Checks that no engine's max_model_len exceeds the positions of its model, scaled by the whole factor of its RoPE,
    that the student's weights can be trained, and that learner.frozen suits tied embeddings."""
    learner = context.config.learner
    for name, folder in context.folders.items():
        content = weights.read_json(folder / "config.json")
        text = content.get("text_config") or content
        scaling = text.get("rope_parameters") or text.get("rope_scaling") or {}
        longest = text.get("max_position_embeddings", math.inf) * max(1.0, scaling.get("factor") or 1.0)
        _family(context, name, folder)
        asked = context.config.models[name].engine.max_model_len
        if asked > longest and os.environ.get("VLLM_ALLOW_LONG_MAX_MODEL_LEN") != "1":
            expected = f"at most {longest:.0f}, the positions of {folder}"
            context.complain(f"{name}.engine.max_model_len", expected, str(asked))
        if name == "student":
            _is_quantised(context, name, "trained", folder)
            tied = content.get("tie_word_embeddings", text.get("tie_word_embeddings", False))
            if tied and not learner.lora.rank and len({"embeddings", "lm_head"} & set(learner.frozen)) == 1:
                expected = f"both or neither of embeddings and lm_head: in {folder} they are one matrix"
                context.complain("learner.frozen", expected, str(list(learner.frozen)), "Name both, or take it out.")


def _family(context: CheckContext, name: str, folder: Path) -> None:
    """Checks that the model's family is known, or accepted as it is."""
    architecture = weights.architecture(folder)
    kind, expected = architecture.model_type, "a model of a known family (docs/FAMILIES.md)"
    if kind in ELSEWHERE:
        context.complain(f"{name}.checkpoint", expected, f"{folder}, of type {kind}", ELSEWHERE[kind])
    elif architecture.family is UNKNOWN and context.config.model.unknown_family == "refuse":
        remedy = "model.unknown_family=rows has the learner compute it row by row, which is right for every model."
        context.complain(f"{name}.checkpoint", expected, f"{folder}, of type {kind}", remedy)
    held = weights.headers(folder).items()
    if turned := [one for one, entry in held if architecture.turned(one, entry.shape)]:
        found = f"{weights.some(turned)} the other way round in {folder}"
        remedy = "transformers saves them so, engines do not read that: take the checkpoint of the Hub."
        context.complain(f"{name}.checkpoint", "experts laid out as [experts, in, out]", found, remedy)
    if name == "student" and architecture.family.remask == "restart" and context.config.rollout.online_fraction:
        expected = f"0 for a student of type {kind}, whose engine cannot take in weights while it runs"
        found = f"{context.config.rollout.online_fraction:g}"
        context.complain("rollout.online_fraction", expected, found, "Train it offline, or choose a dense student.")


def maskable(context: CheckContext) -> None:
    """Checks that each teacher can be masked."""
    for number, name in enumerate(list(context.config.models)[:-1]):
        if name in context.folders:
            _masked(context, number, name, context.folders[name])


def teachers(context: CheckContext) -> None:
    """Checks that each teacher can be masked, and compared with the student token by token."""
    ours = context.folders.get("student")
    for number, name in enumerate(list(context.config.models)[:-1]):
        if (folder := context.folders.get(name)) is None:
            continue
        _masked(context, number, name, folder)
        top_k, vocabulary = context.config.of_teacher(number).teacher.top_k, weights.vocabulary(folder)
        if vocabulary is not None and top_k > vocabulary:
            expected = f"at most the vocabulary's {vocabulary}"
            context.complain(f"{name}.top_k", expected, str(top_k), "50 keeps nearly all of the mass.")
        if ours is not None:
            for check in (same_tokenizer, same_prompts, common_end):
                check(context, name, folder, ours)


def _masked(context: CheckContext, number: int, name: str, folder: Path) -> None:
    """Checks that a teacher with a mask, or a live one, is not quantised, has matrices to mask, and no unknown ones."""
    one = context.config.of_teacher(number)
    if not any(ratio > 0 for ratio, _ in ratios(one.schedule)) and context.config.learner.teacher == "stored":
        return
    if _is_quantised(context, name, "masked", folder):
        return
    architecture = weights.architecture(folder)
    shapes = {key: one.shape for key, one in weights.headers(folder).items()}
    parts, counts, expected_counts = parts_in(one.teacher.mask), architecture.counted(shapes), architecture.expected()
    if not any(counts[part] for part in parts):
        expected = f"matrices of {' or '.join(parts) or 'some part'} in {folder}"
        remedy = "A mask would do nothing: name other parts, or set all ratios to 0."
        context.complain(f"{name}.mask", expected, "none", remedy)
    if unknown := sorted(weight for weight, shape in shapes.items() if architecture.is_unknown(weight, shape)):
        expected, remedy = "matrices of known parts", "This model's family is not supported as a masked teacher."
        found = f"{len(unknown)} of no known part: {weights.some(unknown)}"
        context.complain(f"{name}.checkpoint", expected, found, remedy)
    for part in (part for part in expected_counts if counts[part] != expected_counts[part]):
        expected = f"{expected_counts[part]} matrices of {part}, as config.json and its family say"
        remedy = "Download it again; if it is whole, it is of another family than its model_type says."
        context.complain(f"{name}.checkpoint", expected, f"{counts[part]} in {folder}", remedy)


def _is_quantised(context: CheckContext, name: str, to_be: str, folder: Path) -> bool:
    """Whether a checkpoint is quantised; if so, complains of it."""
    if packed := weights.quantisation(folder):
        expected = f"weights that can be {to_be}: float32, float16 or bfloat16"
        remedy = "Take the checkpoint that it was made of; a teacher whose ratios are all 0 may be quantised."
        context.complain(f"{name}.checkpoint", expected, f"{folder}, which is quantised: {packed}", remedy)
    return packed is not None


def same_tokenizer(context: CheckContext, name: str, teacher: Path, student: Path) -> None:
    identity, own = weights.tokenizer_identity(teacher), weights.tokenizer_identity(student)
    if different := [part for part in own if own[part] != identity[part]]:
        found = f"{student}, which differs in {', '.join(different)}"
        remedy = "Distributions can only be compared token by token: choose a pair of one family."
        context.complain("student.checkpoint", f"the tokenizer of the teacher ({teacher})", found, remedy)


def same_prompts(context: CheckContext, name: str, teacher: Path, student: Path) -> None:
    """Prints a remark when teacher and student may have other prompts, which a live teacher must not."""
    if weights.prompt_digest(teacher) != weights.prompt_digest(student):
        if context.config.learner.teacher == "live":
            expected = f"stored, since {name} makes other prompts than the student"
            remedy = "A live teacher reads the student's own prompts: processor files and chat templates must be equal."
            context.complain("learner.teacher", expected, "live", remedy)
        else:
            warn(
                f"{name} has other processor files or another chat template than the student: their prompts may differ"
            )


def common_end(context: CheckContext, name: str, teacher: Path, student: Path) -> None:
    theirs, ours = weights.end_ids(teacher), weights.end_ids(student)
    if not theirs & ours:
        expected = f"a token that ends answers of {name} too: {sorted(theirs) or 'none'} in {teacher}"
        remedy = "Give generation_config.json of either the eos_token_id of the other, if its chat template ends so."
        context.complain("student.checkpoint", expected, f"{sorted(ours) or 'none'} in {student}", remedy)
    elif theirs != ours:
        kept = f"; {name} is kept from writing {sorted(theirs - ours)}" if theirs - ours else ""
        say(f"answers of {name} end with tokens {sorted(theirs)}, the student's with {sorted(ours)}{kept}")
