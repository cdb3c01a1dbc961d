"""Checks of the models' prompts: shows one in full, their lengths, and whether engine and learner read the same ids."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from masters_ray import data
from masters_ray.checks.context import CheckContext, Findings, guarded
from masters_ray.checks.rows import FIRST
from masters_ray.errors import CheckpointError, Complaint
from masters_ray.method.prompts import ground_truth, question_messages
from masters_ray.models import special_tokens, weights
from masters_ray.models.weights import read_config
from masters_ray.records import Problem

if TYPE_CHECKING:
    from masters_ray.models.chat import Chat

_COMPARED = 3
"""Number of questions whose token ids are compared."""
_REPEATED = re.compile(r"([<\[]\S{1,40}?[>\]])\1{3,}")
"""Matches a picture's run of equal tokens, which is shown as one token and its count."""
_MARK = chr(0x10FFFF)
_PATCHES = {
    "patch_size": "patch_size",
    "temporal_patch_size": "temporal_patch_size",
    "merge_size": "spatial_merge_size",
}
"""Attribute of an image processor → key of vision_config that must have the same value."""


class _Measured(NamedTuple):
    """A processor's outcome on a source's questions."""

    read: list[tuple[int, Problem]]
    """(tokens of the prompt, problem) of each question that it can process."""
    failed: list[str]
    """Id and error of each question on which it fails."""


class _Prompts(NamedTuple):
    """A model's prompts for the questions that were loaded."""

    chat: Chat
    digest: str
    """Of the files that make prompts."""
    of: dict[str, _Measured]
    """By "train" and "held_out"."""


def prompts(context: CheckContext) -> Findings:
    """Checks that prompts can be made, fit the engines with pictures expanded, and are equal in engine and learner."""
    if not context.loaded:
        return
    found: dict[str, _Prompts] = {}
    for name in reversed(context.folders):  # the student first, and processors raise what they like
        yield from guarded(f"{name}.checkpoint", "prompts", _of_model(context, name, found), Exception)
    if "student" in found:
        first = next(iter(context.loaded))
        sources = [one.of[first].read for one in found.values()]
        readable = set.intersection(*({problem.id for _, problem in read} for read in sources))
        problems = [problem for _, problem in sources[0] if problem.id in readable]
        yield from same_ids({name: one.chat for name, one in found.items()}, problems[:_COMPARED])


def same_ids(chats: Mapping[str, Chat], problems: Sequence[Problem]) -> Findings:
    """Checks that engine and learner have the same ids for these questions, with each picture and the start token once.
    Remarks when a teacher's prompts differ from the student's. chats: key of the student or a teacher → its Chat."""
    lengths: dict[str, list[int]] = {}
    for name, chat in chats.items():
        try:
            lengths[name] = [_expanded_length(chat, problem) for problem in problems]
        except Exception as error:  # noqa: BLE001 - processors raise what they like
            said = str(error) if isinstance(error, CheckpointError) else f"{type(error).__name__}: {error}"
            yield Complaint(f"{name}.checkpoint", "prompts", said.rstrip("."))
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


def _of_model(context: CheckContext, name: str, found: dict[str, _Prompts]) -> Findings:
    """The model's prompts, which ``found`` gets, can be made and fit its engine. The first model's are shown."""
    from masters_ray.models import hf
    from masters_ray.models.chat import Chat

    folder = context.folders[name]
    _known(folder)
    if extra := hf.unexpected_weights(folder):
        which = f"{len(extra)} weights in {folder} belong to no part of its model ({extra[0]})"
        yield f"{name}: {which}; engines may refuse them"
    chat, digest = Chat(folder), weights.prompt_digest(folder)
    _fits_its_processor(chat)
    made = next((one.of for one in found.values() if one.digest == digest), None)
    if made is None:
        made = {source: _measure(chat, loaded.problems) for source, loaded in context.loaded.items()}
    if not found:
        yield from _shown(chat, name, next(iter(made.values())).read[0][1])
    found[name] = _Prompts(chat, digest, made)
    for source in context.loaded:
        yield from _fit(context, name, source, made[source])


def _known(folder: Path) -> None:
    """Raises CheckpointError when transformers has no vision-language model of this type, or vLLM cannot tell it."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    content = read_config(folder)
    kind = content.get("model_type")
    if not content.get("architectures"):
        raise CheckpointError(f"{folder}: config.json names no architectures, by which engines know a model")
    if kind not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        raise CheckpointError(
            f"{folder}: expected a vision-language model that transformers knows (AutoModelForImageTextToText), found "
            f"model_type {kind!r}. Take the checkpoint in transformers' own layout, which is often named -hf."
        )


def _ids(chat: Chat, problem: Problem) -> list[int]:
    """Returns the prompt's ids as the learner reads them: with pictures expanded."""
    pictures = [data.decode(picture) for picture in problem.pictures]
    ids: list[int] = chat.inputs(question_messages(problem), pictures)["input_ids"][0].tolist()
    return ids


def _measure(chat: Chat, problems: Sequence[Problem]) -> _Measured:
    """Processes the first questions. Raises CheckpointError when the processor fails on all of them."""
    found = _Measured([], [])
    for problem in problems[:FIRST]:
        try:
            found.read.append((len(_ids(chat, problem)), problem))
        except Exception as error:  # noqa: BLE001 - processors raise any type
            found.failed.append(f"{problem.id}: {type(error).__name__}: {error}")
    if not found.read:
        raise CheckpointError(found.failed[0])
    return found


def _shown(chat: Chat, name: str, problem: Problem) -> Findings:
    ids = _ids(chat, problem)
    text = _REPEATED.sub(lambda run: f"{run[1]}×{len(run[0]) // len(run[1])}", chat.tokenizer.decode(ids))
    yield f"the {name} gets question {problem.id} like this ({len(ids)} tokens):"
    yield from (f"  | {line}" for line in text.splitlines())
    yield f"  right, as a judge is told: {ground_truth(problem)}"


def _fit(context: CheckContext, name: str, source: str, measured: _Measured) -> Findings:
    """Reports prompt lengths, and prompts that leave less than the longest answer. Complains when more prompts fail or
    reach max_model_len, where the engine refuses them, than rollout.max_set_aside_share allows."""
    config, key, limit = context.config, f"data.{source}", context.config.models[name].engine.max_model_len
    most = config.rollout.sampling.max_tokens if source == "train" else config.evaluation_tokens
    lengths, failed = [tokens for tokens, _ in measured.read], len(measured.failed)
    count, longest = len(lengths), max(lengths)
    which = measured.read[lengths.index(longest)][1].id
    cut = sum(limit - most < tokens < limit for tokens in lengths)
    yield (
        f"{name}: prompts of {key} have {min(lengths)} to {longest} tokens (the longest: {which}), answers up to "
        f"{most}, together at most {limit}: {cut} of {count} prompts leave less for them"
    )
    allowed = config.rollout.max_set_aside_share
    if failed:
        found = f"{failed} of {failed + count} questions on which its processor fails ({measured.failed[0]})"
        remedy = "Take them out, or raise rollout.max_set_aside_share."
        complaint = Complaint(key, f"questions that {name} can be asked", found, remedy)
        yield complaint if failed > allowed * (failed + count) else f"{name}: {key} has {found}; they are set aside"
    if refused := sum(tokens >= limit for tokens in lengths):
        expected = f"more than the prompts of {key}, up to {longest} tokens"
        remedy = "Raise it, use smaller pictures, or take the rows out."
        found = f"{limit}, and {refused} of {count} do not fit"
        complaint = Complaint(f"{name}.engine.max_model_len", expected, found, remedy)
        yield complaint if refused > allowed * count else f"  {refused} of {count} do not fit and are set aside"


def _fits_its_processor(chat: Chat) -> None:
    """Raises CheckpointError when the processor cuts other patches than the model has."""
    cutter, vision = (
        getattr(chat.processor, "image_processor", None),
        read_config(chat.folder).get("vision_config") or {},
    )
    for key, theirs in _PATCHES.items():
        cut, wanted = getattr(cutter, key, None), vision.get(theirs)
        if isinstance(cut, int) and isinstance(wanted, int) and cut != wanted:
            raise CheckpointError(
                f"the processor cuts pictures with {key} {cut}, config.json has vision_config.{theirs} {wanted}"
            )


def _expanded_length(chat: Chat, problem: Problem) -> int:
    """Tokens of the question with its pictures. Raises CheckpointError when something is wrong with its ids."""
    marks, content = set(chat.placeholder_ids()), read_config(chat.folder)
    asked = chat.token_ids(question_messages(problem))
    if (there := sum(token_id in marks for token_id in asked)) != len(problem.pictures):
        raise CheckpointError(f"the chat template marks {there} pictures of {len(problem.pictures)}")
    if chat.start and asked[: 2 * len(chat.start)] == 2 * chat.start:
        raise CheckpointError("the chat template writes the start token twice")
    learned = _ids(chat, problem)
    stands_for = content.get("image_token_id", content.get("image_token_index"))
    if problem.pictures and isinstance(stands_for, int) and stands_for not in learned:
        raise CheckpointError(
            f"config.json says that pictures stand at token {stands_for}, and the processor puts none there"
        )
    if not _expands(asked, learned, marks):
        raise CheckpointError(
            f"engine and learner read different prompts: beside the pictures of {problem.id} the processor makes other "
            "tokens of the text than the tokenizer"
        )
    end, known = chat.turn_end(), special_tokens.end_ids(chat.folder)
    if end is not None and end not in known:
        raise CheckpointError(
            f"its chat template ends a turn with token {end}, which generation_config.json does not name "
            f"(eos_token_id: {sorted(known)}): answers would not end"
        )
    return len(learned)


def _expands(asked: Sequence[int], learned: Sequence[int], marks: set[int]) -> bool:
    """Whether ``learned`` is ``asked`` with one or more tokens in place of each mark. Compares them as texts of one
    character per token."""
    text = "".join(_MARK if token_id in marks else chr(token_id) for token_id in asked)
    first, *others = map(re.escape, text.split(_MARK))
    *middle, last = others or [""]
    pattern = first + "".join(f"(?>.+?{piece})" for piece in middle) + (".+" if others else "") + last
    return re.fullmatch(pattern, "".join(map(chr, learned)), re.DOTALL) is not None
