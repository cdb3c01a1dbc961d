"""Whether teacher, student and learner read a question alike, and end answers alike: token ids of a few prompts."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from masters_ray.data import decode
from masters_ray.engines import reserved
from masters_ray.errors import CheckpointError, Complaint
from masters_ray.parts import PATCH_SIZES
from masters_ray.prompts import question_messages
from masters_ray.records import Problem
from masters_ray.weight_files import read_config

if TYPE_CHECKING:
    from masters_ray.engines.chat import Chat

_SAMPLING = (
    *("temperature", "top_p", "top_k", "min_p", "typical_p", "repetition_penalty", "no_repeat_ngram_size"),
    *("suppress_tokens", "begin_suppress_tokens", "bad_words_ids", "forced_bos_token_id", "forced_eos_token_id"),
)


def ends(key: str, teacher: Path, student: Path) -> tuple[list[Complaint], list[str]]:
    """Whether the answers of both can end with the same token; and what is to be said of it. Reads JSON files alone.

    key: of the teacher in the configuration.
    """
    try:
        theirs, ours = reserved.end_ids(teacher), reserved.end_ids(student)
    except CheckpointError as error:
        return [_complaint("eos_token_id", "tokens that end an answer", error)], []
    if not theirs & ours:
        complaint = Complaint(
            where="student.checkpoint",
            expected=f"a token that ends answers of {key} too: {sorted(theirs) or 'none'} in {teacher}",
            found=f"{sorted(ours) or 'none'} in {student}",
            remedy="Give generation_config.json of one of them the eos_token_id of the other, if its chat template "
            "ends so.",
        )
        return [complaint], []
    notes = []
    if theirs != ours:
        kept = f"; {key} is kept from writing {sorted(theirs - ours)}" if theirs - ours else ""
        notes.append(f"answers of {key} end with tokens {sorted(theirs)}, the student's with {sorted(ours)}{kept}")
    for name, folder in ((key, teacher), ("student", student)):
        file = folder / "generation_config.json"
        content = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        ignored = [f"{setting} {content[setting]}" for setting in _SAMPLING if content.get(setting) is not None]
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
    prompts: list[tuple[list[int], list[int]]] = []
    for name, folder in ((key, teacher), ("student", student)):
        try:
            chat = Chat(folder)
            lengths = [_check(chat, problem) for problem in problems]
            prompts += [(chat.token_ids(question_messages(problem)), lengths) for problem in problems[:1]]
        except CheckpointError as error:
            remedy = "Mend the files of tokenizer, processor and chat template, or download them again."
            complaints.append(_complaint(f"{name}.checkpoint", "prompts", error, remedy))
    if complaints or not problems or prompts[0] == prompts[1]:
        return complaints, []
    (theirs, their_lengths), (ours, our_lengths) = prompts
    return [], [
        f"{key} reads another prompt than the student, by "
        f"{'the tokens of its pictures' if theirs == ours else 'its chat template'}: question {problems[0].id} has "
        f"{their_lengths[0]} tokens for it and {our_lengths[0]} for the student. Only the answers' tokens are compared."
    ]


def _complaint(where: str, expected: str, error: CheckpointError, remedy: str = "") -> Complaint:
    return Complaint(where=where, expected=expected, found=str(error).rstrip("."), remedy=remedy)


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
    _check_pictures(chat, learned if problem.pictures else None)
    if not _expands(asked, learned, marks):
        raise CheckpointError(
            f"engine and learner read different prompts: beside the pictures of {problem.id} the processor makes other "
            "tokens of the text than the tokenizer"
        )
    end, ends = chat.turn_end(), reserved.end_ids(chat.folder)
    if end is not None and end not in ends:
        raise CheckpointError(
            f"its chat template ends a turn with token {end}, which generation_config.json does not name "
            f"(eos_token_id: {sorted(ends)}): answers would not end"
        )
    return len(learned)


def _check_pictures(chat: Chat, learned: list[int] | None) -> None:
    """Raises CheckpointError when the processor cuts pictures into other patches than the model, or puts them elsewhere
    than where config.json says. learned: ids of a prompt with pictures."""
    config = read_config(chat.folder)
    cutter = getattr(chat.processor, "image_processor", None)
    for name, theirs in PATCH_SIZES.items():
        cut, wanted = getattr(cutter, name, None), (config.get("vision_config") or {}).get(theirs)
        if isinstance(cut, int) and isinstance(wanted, int) and cut != wanted:
            raise CheckpointError(
                f"the processor cuts pictures with {name} {cut}, config.json has vision_config.{theirs} {wanted}"
            )
    stands_for = config.get("image_token_id", config.get("image_token_index"))
    if learned is not None and isinstance(stands_for, int) and stands_for not in learned:
        raise CheckpointError(
            f"config.json says that pictures stand at token {stands_for}, and the processor puts none there"
        )


def _expands(asked: Sequence[int], learned: Sequence[int], marks: set[int]) -> bool:
    """Whether ``learned`` is ``asked`` with one token or more in the place of each mark. Ids are compared as text."""
    pattern = "".join(".+?" if token_id in marks else re.escape(chr(token_id)) for token_id in asked)
    return re.fullmatch(pattern, "".join(map(chr, learned)), re.DOTALL) is not None
