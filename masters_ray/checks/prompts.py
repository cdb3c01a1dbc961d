"""The prompts that models would get: one in full, their lengths, and whether engine and learner read them alike."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from masters_ray import data, weights
from masters_ray.checks.context import CheckContext, Findings, from_error
from masters_ray.checks.rows import FIRST
from masters_ray.engines import reserved
from masters_ray.errors import CheckpointError, Complaint, MastersError
from masters_ray.prompts import ground_truth, question_messages
from masters_ray.records import Problem
from masters_ray.weights import read_config

if TYPE_CHECKING:
    from masters_ray.engines.chat import Chat

_CHANNELS = 3
_MUCH_SMALLER = 0.5
_COMPARED = 3
"""Questions whose ids are compared."""
_REPEATED = re.compile(r"([<\[]\S{1,40}?[>\]])\1{3,}")
"""A picture's tokens, shown as one of them with their number."""
_PATCHES = {
    "patch_size": "patch_size",
    "temporal_patch_size": "temporal_patch_size",
    "merge_size": "spatial_merge_size",
}
"""What an image processor calls a size → what a model does."""
_MARK = chr(0x10FFFF)


class _Length(NamedTuple):
    """Of a question's prompt."""

    problem: Problem
    tokens: int
    pixels: int
    """Of its pictures."""
    seen: int
    """Those that the model gets."""


class _Lengths(NamedTuple):
    """Of a source's questions."""

    read: list[_Length]
    failed: list[str]
    """Questions on which the processor fails, and why."""


_Measured = dict[str, dict[str, _Lengths]]
"""Digest of a model's prompt files → "train" or "held_out" → lengths."""


def prompts(context: CheckContext) -> Findings:
    """Prompts can be made, fit the engines with their pictures expanded, and are the same for engine and learner."""
    if not context.loaded or not context.models:
        return
    if missing := [name for name in ("transformers", "torch") if find_spec(name) is None]:
        yield f"prompts: not looked at, since {' and '.join(missing)} are not installed here"
        return
    measured: _Measured = {}
    chats: dict[str, Chat] = {}
    clean = True
    for name in reversed(context.models):
        for found in _of_model(context, name, measured, chats):
            clean = clean and isinstance(found, str)
            yield found
    if clean and "student" in chats:
        first, loaded = next(iter(context.loaded.items()))
        readable = set.intersection(*({one.problem.id for one in of[first].read} for of in measured.values()))
        problems = (one for one in loaded.problems[:FIRST] if one.id in readable)
        yield from same_ids(chats, list(itertools.islice(problems, _COMPARED)))


def same_ids(chats: Mapping[str, Chat], problems: Sequence[Problem]) -> Findings:
    """Engine and learner have the same ids of these questions, each picture and the start token once. Remarks that a
    teacher's prompts differ from the student's. chats: of the student and of teachers, by their keys."""
    lengths: dict[str, list[int]] = {}
    for name, chat in chats.items():
        try:
            lengths[name] = [_expanded(chat, problem) for problem in problems]
        except CheckpointError as error:
            remedy = "Mend the files of tokenizer, processor and chat template, or download them again."
            yield from_error(f"{name}.checkpoint", "prompts", error, remedy)
    if not problems or lengths.keys() != chats.keys():
        return
    asked = {name: chat.token_ids(question_messages(problems[0])) for name, chat in chats.items()}
    for name in chats:
        if asked[name] != asked["student"] or lengths[name] != lengths["student"]:
            what = "by its chat template" if asked[name] != asked["student"] else "by the tokens of its pictures"
            yield (
                f"{name} reads another prompt than the student, {what}: question {problems[0].id} has "
                f"{lengths[name][0]} tokens for it and {lengths['student'][0]} for the student. Only the answers' "
                "tokens are compared."
            )


def _of_model(context: CheckContext, name: str, measured: _Measured, chats: dict[str, Chat]) -> Findings:
    """What a model's processor makes of the questions; measured and chats get what this model adds to the others'."""
    from masters_ray.engines.chat import Chat

    folder = context.models[name]
    digest = weights.prompt_digest(folder)
    try:
        _known(folder)
        yield from incomplete(name, folder)
        chat = Chat(folder)
        if digest not in measured:
            found = {source: _lengths(chat, loaded.problems) for source, loaded in context.loaded.items()}
            if not measured:
                yield from _shown(chat, name, next(iter(found.values())).read[0].problem)
            measured[digest] = found
    except Exception as error:  # noqa: BLE001 - processors and templates raise what they like
        said = error if isinstance(error, MastersError) else CheckpointError(f"{type(error).__name__}: {error}")
        yield from_error(f"{name}.checkpoint", "prompts", said)
        return
    chats[name] = chat
    for source, lengths in measured[digest].items():
        yield from _failures(context, name, source, lengths)
        yield from _fit(context, name, source, lengths.read)


def _known(folder: Path) -> None:
    """Raises CheckpointError when transformers has no vision-language model of this type."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    content = read_config(folder)
    kind = content.get("model_type")
    if not content.get("architectures"):
        raise CheckpointError(f"{folder}: config.json names no architectures, by which engines know a model.")
    if kind not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        raise CheckpointError(
            f"{folder}: expected a vision-language model that transformers knows (AutoModelForImageTextToText), found "
            f"model_type {kind!r}. Take the checkpoint in transformers' own layout, which is often named -hf."
        )


def incomplete(name: str, folder: Path) -> Findings:
    """Weights of the model that are missing, and such as it does not have."""
    from masters_ray.engines import hf

    try:
        extra = hf.superfluous(folder)
    except CheckpointError as error:
        yield from_error(f"{name}.checkpoint", "a whole checkpoint", error)
        return
    if extra:
        which = f"{len(extra)} weights in {folder} belong to no part of its model ({extra[0]})"
        yield f"{name}: {which}; engines may refuse them"


def _lengths(chat: Chat, problems: Sequence[Problem]) -> _Lengths:
    """Raises CheckpointError when the processor fails on all questions."""
    found = _Lengths([], [])
    # Some processors hand a picture over as a film of two equal ones.
    frames = getattr(getattr(chat.processor, "image_processor", None), "temporal_patch_size", 1)
    for problem in itertools.islice(problems, FIRST):
        pictures = [data.decode(one) for one in problem.pictures]
        try:
            inputs = chat.inputs(question_messages(problem), pictures)
        except Exception as error:  # noqa: BLE001 - processors raise what they like
            found.failed.append(f"{problem.id}: {type(error).__name__}: {error}")
            continue
        pixels = sum(one.width * one.height for one in pictures)
        shown = inputs["pixel_values"].numel() // (_CHANNELS * frames) if "pixel_values" in inputs else 0
        found.read.append(_Length(problem, inputs["input_ids"].shape[1], pixels, shown))
    if not found.read:
        raise CheckpointError(found.failed[0])
    return found


def _shown(chat: Chat, name: str, problem: Problem) -> Findings:
    ids = chat.inputs(question_messages(problem), [data.decode(one) for one in problem.pictures])["input_ids"][0]
    text = _REPEATED.sub(lambda run: f"{run[1]}×{len(run[0]) // len(run[1])}", chat.tokenizer.decode(ids.tolist()))
    yield f"the {name} gets question {problem.id} like this ({len(ids)} tokens):"
    yield from (f"  | {line}" for line in text.splitlines())
    yield f"  right, as a judge is told: {ground_truth(problem)}"


def _failures(context: CheckContext, name: str, source: str, lengths: _Lengths) -> Findings:
    """What the processor fails on is set aside by a run, if it is not too much."""
    if not lengths.failed:
        return
    count, of = len(lengths.failed), len(lengths.failed) + len(lengths.read)
    found = f"{count} of {of} questions on which its processor fails ({lengths.failed[0]})"
    if count <= context.config.rollout.max_set_aside_share * of:
        yield f"{name}: data.{source} has {found}; they are set aside"
    else:
        remedy = "Take them out, or raise rollout.max_set_aside_share."
        yield Complaint(f"data.{source}", f"questions that {name} can be asked", found, remedy)


def _fit(context: CheckContext, name: str, source: str, lengths: Sequence[_Length]) -> Findings:
    """A prompt as long as max_model_len is refused by the engine; one that leaves less than the longest answer may end
    in answers that are cut; small writing is lost where the processor shrinks pictures."""
    config, key, count = context.config, f"{name}.engine.max_model_len", len(lengths)
    limit, trains = config.models[name].engine.max_model_len, source == "train"
    most = config.rollout.sampling.max_tokens if trains else config.evaluation_tokens
    longest = max(lengths, key=lambda one: one.tokens)
    shortest = min(one.tokens for one in lengths)
    yield (
        f"{name}: prompts of data.{source} have {shortest} to {longest.tokens} tokens (the longest: "
        f"{longest.problem.id}), answers up to {most}, together at most {limit}"
    )
    if cut := sum(limit - most < one.tokens < limit for one in lengths):
        by = "rollout.sampling.max_tokens" if trains else "evaluation.max_tokens"
        yield f"  {cut} of {count} prompts leave less than {by}: answers to them may be cut"
    refused = sum(one.tokens >= limit for one in lengths)
    if refused > config.rollout.max_set_aside_share * count:
        expected = f"more than the prompts of data.{source}, up to {longest.tokens} tokens"
        remedy = "Raise it, use smaller pictures, or take the rows out."
        yield Complaint(key, expected, f"{limit}, and {refused} of {count} do not fit", remedy)
    elif refused:
        yield f"  {refused} of {count} prompts do not fit {key} and are set aside"
    if shrunk := [one for one in lengths if 0 < one.seen < one.pixels * _MUCH_SMALLER]:
        worst = min(shrunk, key=lambda one: one.seen / one.pixels)
        yield (
            f"{name}: the processor shrinks pictures of {len(shrunk)} of {count} questions of data.{source} to less "
            f"than {_MUCH_SMALLER:.0%} of their pixels (the most: {worst.problem.id}, {worst.pixels:,} pixels to "
            f"{worst.seen:,}): small writing may be lost. preprocessor_config.json, or processor_config.json, says how "
            "far"
        )


def _expanded(chat: Chat, problem: Problem) -> int:
    """Tokens of the question with its pictures. Raises CheckpointError when something is wrong with its ids."""
    messages, marks = question_messages(problem), set(chat.placeholder_ids())
    asked = chat.token_ids(messages)
    there = sum(token_id in marks for token_id in asked)
    if there != len(problem.pictures):
        raise CheckpointError(f"the chat template marks {there} pictures of {len(problem.pictures)}")
    if chat.start and asked[: 2 * len(chat.start)] == 2 * chat.start:
        raise CheckpointError("the chat template writes the start token twice")
    pictures = [data.decode(picture) for picture in problem.pictures]
    try:
        learned: list[int] = chat.inputs(messages, pictures)["input_ids"][0].tolist()
    except Exception as error:  # a processor raises what it likes
        raise CheckpointError(f"the processor fails on {problem.id} ({type(error).__name__}: {error})") from error
    named = read_config(chat.folder)
    cutter, vision = getattr(chat.processor, "image_processor", None), named.get("vision_config") or {}
    for name, theirs in _PATCHES.items():
        cut, wanted = getattr(cutter, name, None), vision.get(theirs)
        if isinstance(cut, int) and isinstance(wanted, int) and cut != wanted:
            raise CheckpointError(
                f"the processor cuts pictures with {name} {cut}, config.json has vision_config.{theirs} {wanted}"
            )
    stands_for = named.get("image_token_id", named.get("image_token_index"))
    if problem.pictures and isinstance(stands_for, int) and stands_for not in learned:
        raise CheckpointError(
            f"config.json says that pictures stand at token {stands_for}, and the processor puts none there"
        )
    if not _expands(asked, learned, marks):
        raise CheckpointError(
            f"engine and learner read different prompts: beside the pictures of {problem.id} the processor makes other "
            "tokens of the text than the tokenizer"
        )
    end, known = chat.turn_end(), reserved.end_ids(chat.folder)
    if end is not None and end not in known:
        raise CheckpointError(
            f"its chat template ends a turn with token {end}, which generation_config.json does not name "
            f"(eos_token_id: {sorted(known)}): answers would not end"
        )
    return len(learned)


def _expands(asked: Sequence[int], learned: Sequence[int], marks: set[int]) -> bool:
    """Whether ``learned`` is ``asked`` with one or more tokens in the place of each mark; as texts with a character
    for each token."""
    text = "".join(_MARK if token_id in marks else chr(token_id) for token_id in asked)
    first, *others = map(re.escape, text.split(_MARK))
    *middle, last = others or [""]
    pattern = first + "".join(f"(?>.+?{piece})" for piece in middle) + (".+" if others else "") + last
    return re.fullmatch(pattern, "".join(map(chr, learned)), re.DOTALL) is not None
