"""Checks of the models' prompts: shows one in full, their lengths, and whether engine and learner read the same ids."""

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from masters_ray import data
from masters_ray.checks.context import CheckContext
from masters_ray.checks.rows import FIRST
from masters_ray.errors import CheckpointError
from masters_ray.method.prompts import ground_truth, question_messages
from masters_ray.models import weights
from masters_ray.progress import say, warn
from masters_ray.records import Problem

if TYPE_CHECKING:
    from masters_ray.models.chat import Chat

_REPEATED = re.compile(r"([<\[]\S{1,40}?[>\]])\1{3,}")
"""Matches a picture's run of equal tokens, which is shown as one token and its count."""
_MARK = chr(0x10FFFF)
_CUTS = {"patch_size": "patch_size", "temporal_patch_size": "temporal_patch_size", "merge_size": "spatial_merge_size"}
"""Attribute of an image processor → key of vision_config that must have the same value."""


def prompts(context: CheckContext) -> None:
    """Checks that prompts can be made, fit the engines with pictures expanded, and are equal in engine and learner."""
    if context.loaded:
        for name in reversed(context.folders):  # the student first, and processors raise what they like
            with context.guarded(f"{name}.checkpoint", "prompts", Exception):
                _of_model(context, name)


def _of_model(context: CheckContext, name: str) -> None:
    from masters_ray.models import hf
    from masters_ray.models.chat import Chat

    folder = context.folders[name]
    if not weights.read_json(folder / "config.json").get("architectures"):
        raise CheckpointError(f"{folder}: config.json names no architectures, by which engines know a model")
    if extra := hf.unexpected_weights(folder):
        warn(f"{name}: {folder} has weights of no part of its model ({weights.some(extra)}); engines may refuse them")
    if name == "student":
        hf.check_names(folder)
    chat = Chat(folder)
    readable = [problem for source in context.loaded for problem in _that_can_be_asked(context, chat, name, source)]
    if readable and name == "student":
        ids = _ids(chat, readable[0])
        text = _REPEATED.sub(lambda run: f"{run[1]}×{len(run[0]) // len(run[1])}", chat.tokenizer.decode(ids))
        say(f"the student gets question {readable[0].id} like this ({len(ids)} tokens):")
        for line in text.splitlines():
            say(f"  | {line}")
        say(f"  right, as a judge is told: {ground_truth(readable[0])}")
    for problem in readable[:3]:
        check_ids(chat, problem)


def _ids(chat: "Chat", problem: Problem) -> list[int]:
    """Returns the prompt's ids as the learner reads them: with pictures expanded."""
    found = chat.inputs(question_messages(problem), list(map(data.decode, problem.pictures)))
    return list(found["input_ids"][0].tolist())


def _that_can_be_asked(context: CheckContext, chat: "Chat", name: str, source: str) -> list[Problem]:
    """Returns the first questions whose prompts fit; reports their lengths, and those that leave less than the longest
    answer. Complains when more questions cannot be asked than rollout.max_set_aside_share allows."""
    config, key, limit = context.config, f"data.{source}", context.config.models[name].engine.max_model_len
    read: list[tuple[int, Problem]] = []
    failed = []
    for problem in context.loaded[source][:FIRST]:
        try:
            tokens = len(_ids(chat, problem))
        except Exception as error:  # noqa: BLE001 - processors raise any type
            failed.append(f"{problem.id}: {type(error).__name__}: {error}")
            continue
        if tokens < limit:
            read.append((tokens, problem))
        else:
            failed.append(f"{problem.id}: {tokens} tokens, where engine.max_model_len is {limit}")
    if failed:
        found = f"{len(failed)} of {len(failed) + len(read)} that cannot be asked ({failed[0]})"
        if len(failed) <= config.rollout.max_set_aside_share * (len(failed) + len(read)):
            warn(f"{name}: {key} has {found}; they are set aside")
        else:
            remedy = f"Take them out, or raise rollout.max_set_aside_share or {name}.engine.max_model_len."
            context.complain(key, f"questions that {name} can be asked", found, remedy)
    if read:
        most = config.rollout.sampling.max_tokens if source == "train" else config.evaluation_tokens
        lengths = [tokens for tokens, _ in read]
        longest, problem = max(read, key=lambda one: one[0])
        short = sum(limit - most < tokens for tokens in lengths)
        say(
            f"{name}: prompts of {key} have {min(lengths)} to {longest} tokens (the longest: {problem.id}), answers up "
            f"to {most}, together at most {limit}: {short} of {len(lengths)} prompts leave less for them"
        )
    return [problem for _, problem in read]


def check_ids(chat: "Chat", problem: Problem) -> None:
    """Raises CheckpointError when one of the ``PROMPT_CHECKS`` fails for the question."""
    for check in PROMPT_CHECKS.values():
        check(chat, problem)


def _picture_size(chat: "Chat", _: Problem) -> None:
    """Pictures are cut as the model wants them."""
    content = weights.read_json(chat.folder / "config.json")
    processor = getattr(chat.processor, "image_processor", None)
    for attribute, key in _CUTS.items():
        cut, wanted = getattr(processor, attribute, None), content.get("vision_config", {}).get(key)
        if isinstance(cut, int) and isinstance(wanted, int) and cut != wanted:
            told = f"cuts pictures with {attribute} {cut}, config.json has vision_config.{key} {wanted}"
            raise CheckpointError(f"{chat.folder}: the processor {told}")


def _picture_tokens(chat: "Chat", problem: Problem) -> None:
    """The prompt has one token for each picture, which the processor expands."""
    marks, asked = set(chat.placeholder_ids()), chat.token_ids(question_messages(problem))
    if (there := sum(token_id in marks for token_id in asked)) != len(problem.pictures):
        raise CheckpointError(f"the chat template marks {there} pictures of {len(problem.pictures)}")
    content = weights.read_json(chat.folder / "config.json")
    stands_for = content.get("image_token_id", content.get("image_token_index"))
    if problem.pictures and stands_for not in (None, *_ids(chat, problem)):
        raise CheckpointError(f"config.json has pictures at token {stands_for}, where the processor puts none")


def _start_token(chat: "Chat", problem: Problem) -> None:
    """The start token stands once."""
    asked = chat.token_ids(question_messages(problem))
    if chat.start and asked[: 2 * len(chat.start)] == 2 * chat.start:
        raise CheckpointError("the chat template writes the start token twice")


def _same_prompt(chat: "Chat", problem: Problem) -> None:
    """Engine and learner have the same ids beside pictures."""
    marks, asked = set(chat.placeholder_ids()), chat.token_ids(question_messages(problem))
    if not _expands(asked, _ids(chat, problem), marks):
        other = f"beside the pictures of {problem.id} the processor makes other tokens than the tokenizer"
        raise CheckpointError(f"engine and learner read different prompts: {other}")


def _end_token(chat: "Chat", _: Problem) -> None:
    """Answers end with a token at which the engine stops."""
    if (end := chat.turn_end()) not in (None, *(known := weights.end_ids(chat.folder))):
        named = f"generation_config.json does not name (eos_token_id: {sorted(known)}): answers would not end"
        raise CheckpointError(f"its chat template ends a turn with token {end}, which {named}")


PROMPT_CHECKS: dict[str, Callable[["Chat", Problem], None]] = {
    "picture_size": _picture_size,
    "picture_tokens": _picture_tokens,
    "start_token": _start_token,
    "prompt": _same_prompt,
    "end_token": _end_token,
}
"""Name → what must hold of a model's prompt for a question; raises CheckpointError."""


def _expands(asked: Sequence[int], learned: Sequence[int], marks: set[int]) -> bool:
    """Whether ``learned`` is ``asked`` with one or more tokens in place of each mark. Compares them as texts of one
    character per token."""
    text = "".join(_MARK if token_id in marks else chr(token_id) for token_id in asked)
    first, *others = map(re.escape, text.split(_MARK))
    *middle, last = others or [""]
    pattern = first + "".join(f"(?>.+?{piece})" for piece in middle) + (".+" if others else "") + last
    return re.fullmatch(pattern, "".join(map(chr, learned)), re.DOTALL) is not None
