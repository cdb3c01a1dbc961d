"""Whether teacher, student and learner read a question alike, and end answers alike: token ids of a few prompts."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from masters_ray.data import decode
from masters_ray.engines import reserved
from masters_ray.errors import CheckpointError, Complaint
from masters_ray.prompts import question_messages
from masters_ray.records import Problem
from masters_ray.weight_files import read_config

if TYPE_CHECKING:
    from masters_ray.engines.chat import Chat

_PATCHES = {
    "patch_size": "patch_size",
    "temporal_patch_size": "temporal_patch_size",
    "merge_size": "spatial_merge_size",
}
"""What an image processor calls a size → what a model does."""
_SAMPLING = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "typical_p",
    "repetition_penalty",
    "no_repeat_ngram_size",
    "suppress_tokens",
    "begin_suppress_tokens",
    "bad_words_ids",
    "forced_bos_token_id",
    "forced_eos_token_id",
)


def ends(key: str, teacher: Path, student: Path) -> tuple[list[Complaint], list[str]]:
    """Whether the answers of both can end with the same token; and what is to be said of it. Reads JSON files alone.

    key: of the teacher in the configuration.
    """
    try:
        theirs, ours = reserved.end_ids(teacher), reserved.end_ids(student)
    except CheckpointError as error:
        expected = "tokens that end an answer"
        return [Complaint(where="eos_token_id", expected=expected, found=str(error).rstrip("."), remedy="")], []
    if not theirs & ours:
        remedy = (
            "Give generation_config.json of one of them the eos_token_id of the other, if its chat template ends so."
        )
        found = f"{sorted(ours) or 'none'} in {student}"
        expected = f"a token that ends answers of {key} too: {sorted(theirs) or 'none'} in {teacher}"
        return [Complaint(where="student.checkpoint", expected=expected, found=found, remedy=remedy)], []
    notes = []
    if theirs != ours:
        kept = f"; {key} is kept from writing {sorted(theirs - ours)}" if theirs - ours else ""
        notes.append(f"answers of {key} end with tokens {sorted(theirs)}, the student's with {sorted(ours)}{kept}")
    for name, folder in ((key, teacher), ("student", student)):
        ignored = _sampling(folder)
        if ignored:
            notes.append(f"{name}: generation_config.json sets {', '.join(ignored)}; rollout.sampling is used instead")
    return [], notes


def compare(key: str, teacher: Path, student: Path, problems: Sequence[Problem]) -> tuple[list[Complaint], list[str]]:
    """Whether engine and learner have the same ids of these questions, for each of both models, with each picture and
    the start token once; and what is to be said of prompts that differ between teacher and student. Needs transformers,
    no weights.

    key: of the teacher in the configuration.
    """
    from masters_ray.engines.chat import Chat

    complaints: list[Complaint] = []
    lengths: dict[str, list[int]] = {}
    chats: list[Chat] = []
    for name, folder in ((key, teacher), ("student", student)):
        try:
            chats.append(chat := Chat(folder))
            lengths[name] = [_check(chat, problem) for problem in problems]
        except CheckpointError as error:
            remedy = "Mend the files of tokenizer, processor and chat template, or download them again."
            complaints.append(
                Complaint(where=f"{name}.checkpoint", expected="prompts", found=str(error).rstrip("."), remedy=remedy)
            )
    if complaints or not problems:
        return complaints, []
    asked = [chat.token_ids(question_messages(problems[0])) for chat in chats]
    if asked[0] == asked[1] and lengths[key] == lengths["student"]:
        return [], []
    what = "by its chat template" if asked[0] != asked[1] else "by the tokens of its pictures"
    return [], [
        f"{key} reads another prompt than the student, {what}: question {problems[0].id} has {lengths[key][0]} tokens "
        f"for it and {lengths['student'][0]} for the student. Only the answers' tokens are compared."
    ]


def _same_patches(chat: Chat, vision: Mapping[str, Any]) -> None:
    """Raises CheckpointError when the processor cuts pictures into other patches than the model has."""
    cutter = getattr(chat.processor, "image_processor", None)
    for name, theirs in _PATCHES.items():
        cut, wanted = getattr(cutter, name, None), vision.get(theirs)
        if isinstance(cut, int) and isinstance(wanted, int) and cut != wanted:
            raise CheckpointError(
                f"the processor cuts pictures with {name} {cut}, config.json has vision_config.{theirs} {wanted}"
            )


def _check(chat: Chat, problem: Problem) -> int:
    """Tokens of the question with its pictures. Raises CheckpointError when something is wrong with its ids."""
    messages = question_messages(problem)
    asked = chat.token_ids(messages)
    marks = set(chat.placeholder_ids())
    there = sum(token_id in marks for token_id in asked)
    if there != len(problem.pictures):
        raise CheckpointError(f"the chat template marks {there} pictures of {len(problem.pictures)}")
    if chat.start and asked[: 2 * len(chat.start)] == 2 * chat.start:
        raise CheckpointError("the chat template writes the start token twice")
    pictures = [decode(picture) for picture in problem.pictures]
    try:
        learned: list[int] = chat.inputs(messages, pictures)["input_ids"][0].tolist()
    except Exception as error:  # a processor raises what it likes
        raise CheckpointError(f"the processor fails on {problem.id} ({type(error).__name__}: {error})") from error
    named = read_config(chat.folder)
    _same_patches(chat, named.get("vision_config") or {})
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
    end = chat.turn_end()
    if end is not None and end not in reserved.end_ids(chat.folder):
        raise CheckpointError(
            f"its chat template ends a turn with token {end}, which generation_config.json does not name "
            f"(eos_token_id: {sorted(reserved.end_ids(chat.folder))}): answers would not end"
        )
    return len(learned)


def _expands(asked: Sequence[int], learned: Sequence[int], marks: set[int]) -> bool:
    """Whether ``learned`` is ``asked`` with more in the place of each mark."""
    first, *others = _between(asked, marks)
    if list(learned[: len(first)]) != first:
        return False
    place = len(first)
    for piece in others[:-1]:
        starts = range(place + 1, len(learned) - len(piece) + 1)
        found = next((start for start in starts if list(learned[start : start + len(piece)]) == piece), None)
        if found is None:
            return False
        place = found + len(piece)
    if not others:
        return place == len(learned)
    rest = len(learned) - len(others[-1])
    return rest > place and list(learned[rest:]) == others[-1]


def _between(token_ids: Sequence[int], marks: set[int]) -> Iterator[list[int]]:
    """The stretches before, between and after the marks."""
    piece: list[int] = []
    for token_id in token_ids:
        if token_id in marks:
            yield piece
            piece = []
        else:
            piece.append(token_id)
    yield piece


def _sampling(folder: Path) -> list[str]:
    """What a checkpoint's generation configuration says of sampling. Example: ``temperature 0.7``."""
    file = folder / "generation_config.json"
    content = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return [f"{name} {content[name]}" for name in _SAMPLING if content.get(name) is not None]
