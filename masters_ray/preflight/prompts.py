"""A look at the prompts that the models would get: one of them in full, and their lengths."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from masters_ray import data, weights
from masters_ray.config import Config
from masters_ray.engines import prompt_check
from masters_ray.errors import CheckpointError, Complaint, MastersError
from masters_ray.preflight.rows import FIRST, Seen
from masters_ray.progress import say
from masters_ray.prompts import ground_truth, question_messages
from masters_ray.records import Problem
from masters_ray.weight_files import read_config

if TYPE_CHECKING:
    from masters_ray.engines.chat import Chat

_CHANNELS = 3
_MUCH_SMALLER = 0.5
_COMPARED = 3
"""Questions whose ids are compared."""
_RUN = 4
"""So many equal tokens in a row are shown as one with their number."""


@dataclass(frozen=True, kw_only=True)
class _Length:
    problem: Problem
    tokens: int
    pixels: int
    """Of its pictures."""
    seen: int
    """Those that the model gets."""


@dataclass(frozen=True, kw_only=True)
class _Lengths:
    """Of a source's questions."""

    read: list[_Length]
    failed: list[str]
    """Questions on which the processor fails, and why."""


def look(config: Config, seen: Sequence[Seen], models: Mapping[str, Path]) -> list[Complaint]:
    """Say what a question looks like and how long the prompts are, pictures expanded. Complains when more prompts than
    conf allows do not fit an engine."""
    if not seen or not models:
        return []
    missing = [name for name in ("transformers", "torch") if find_spec(name) is None]
    if missing:
        say(f"prompts: not looked at, since {' and '.join(missing)} are not installed here")
        return []
    from masters_ray.engines.chat import Chat

    complaints: list[Complaint] = []
    measured: dict[str, dict[str, _Lengths]] = {}
    for name, folder in reversed(list(models.items())):  # the student is the last one
        digest = weights.prompt_digest(folder)
        try:
            _known(folder)
            complaints += _incomplete(name, folder)
            if digest not in measured:
                chat = Chat(folder)
                found = {one.name: _lengths(chat, one) for one in seen}
                if not measured:
                    _show(chat, name, found[seen[0].name].read[0].problem)
                measured[digest] = found
        except Exception as error:  # noqa: BLE001 - processors and templates raise what they like
            told = str(error) if isinstance(error, MastersError) else f"{type(error).__name__}: {error}"
            complaints.append(
                Complaint(where=f"{name}.checkpoint", expected="prompts", found=told.rstrip("."), remedy="")
            )
            continue
        for source, lengths in measured[digest].items():
            complaints += [*_failures(config, name, source, lengths), *_fit(config, name, source, lengths.read)]
            _say_shrunk(name, source, lengths.read)
    if complaints or not measured:
        return complaints
    readable = set.intersection(*({one.problem.id for one in of[seen[0].name].read} for of in measured.values()))
    compared = (one for one in seen[0].problems[:FIRST] if one.id in readable)
    return _compared(models, list(itertools.islice(compared, _COMPARED)))


def _failures(config: Config, name: str, source: str, lengths: _Lengths) -> list[Complaint]:
    """What the processor fails on is set aside by a run, if it is not too much."""
    if not lengths.failed:
        return []
    count, of = len(lengths.failed), len(lengths.failed) + len(lengths.read)
    told = f"{count} of {of} questions on which its processor fails ({lengths.failed[0]})"
    if count <= config.rollout.max_set_aside_share * of:
        say(f"{name}: data.{source} has {told}; they are set aside")
        return []
    return [
        Complaint(
            where=f"data.{source}",
            expected=f"questions that {name} can be asked",
            found=told,
            remedy="Take them out, or raise rollout.max_set_aside_share.",
        )
    ]


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


def _incomplete(name: str, folder: Path) -> list[Complaint]:
    """Complains of weights of the model that are missing; says which ones it does not have."""
    from masters_ray.engines import hf

    try:
        extra = hf.superfluous(folder)
    except CheckpointError as error:
        found = str(error).rstrip(".")
        return [Complaint(where=f"{name}.checkpoint", expected="a whole checkpoint", found=found, remedy="")]
    if extra:
        told = f"{name}: {len(extra)} weights in {folder} belong to no part of its model ({extra[0]})"
        say(f"{told}; engines may refuse them")
    return []


def _compared(models: Mapping[str, Path], problems: Sequence[Problem]) -> list[Complaint]:
    """Whether engines and learner have the same ids of these questions; says how teachers' prompts differ."""
    complaints: list[Complaint] = []
    for name, folder in models.items():
        if name != "student" and "student" in models:
            found, notes = prompt_check.compare(name, folder, models["student"], problems)
            complaints += found
            for note in notes:
                say(note)
    return list(dict.fromkeys(complaints))


def _show(chat: Chat, name: str, problem: Problem) -> None:
    inputs = chat.inputs(question_messages(problem), [data.decode(one) for one in problem.pictures])
    text = "".join(
        f"{piece}×{count}" if count >= _RUN else piece * count
        for piece, count in _runs(chat, inputs["input_ids"][0].tolist())
    )
    say(f"the {name} gets question {problem.id} like this ({inputs['input_ids'].shape[1]} tokens):")
    for line in text.splitlines():
        say(f"  | {line}")
    say(f"  right, as a judge is told: {ground_truth(problem)}")


def _runs(chat: Chat, ids: Sequence[int]) -> list[tuple[str, int]]:
    """Text and how often it stands there: tokens that are repeated, and stretches of others."""
    runs = [(one, len(list(same))) for one, same in itertools.groupby(ids)]
    found = []
    for repeated, part in itertools.groupby(runs, key=lambda run: run[1] >= _RUN):
        if repeated:
            found += [(chat.tokenizer.decode([one]), count) for one, count in part]
        else:
            found.append((chat.tokenizer.decode([one for one, count in part for _ in range(count)]), 1))
    return found


def _lengths(chat: Chat, seen: Seen) -> _Lengths:
    """Raises what the processor does when it fails on all questions."""
    found: list[_Length] = []
    failed: list[str] = []
    last: Exception | None = None
    # Some processors hand a picture over as a film of two equal ones.
    frames = getattr(getattr(chat.processor, "image_processor", None), "temporal_patch_size", 1)
    for problem in itertools.islice(seen.problems, FIRST):
        pictures = [data.decode(one) for one in problem.pictures]
        try:
            inputs = chat.inputs(question_messages(problem), pictures)
        except Exception as error:  # noqa: BLE001 - processors raise what they like
            failed.append(f"{problem.id}: {type(error).__name__}: {error}")
            last = error
            continue
        found.append(
            _Length(
                problem=problem,
                tokens=inputs["input_ids"].shape[1],
                pixels=sum(one.width * one.height for one in pictures),
                seen=inputs["pixel_values"].numel() // (_CHANNELS * frames) if "pixel_values" in inputs else 0,
            )
        )
    if not found and last is not None:
        raise last
    return _Lengths(read=found, failed=failed)


def _say_shrunk(name: str, source: str, lengths: Sequence[_Length]) -> None:
    shrunk = [one for one in lengths if 0 < one.seen < one.pixels * _MUCH_SMALLER]
    if not shrunk:
        return
    worst = min(shrunk, key=lambda one: one.seen / one.pixels)
    say(
        f"{name}: the processor shrinks pictures of {len(shrunk)} of {len(lengths)} questions of data.{source} to less "
        f"than {_MUCH_SMALLER:.0%} of their pixels (the most: {worst.problem.id}, {worst.pixels:,} pixels to "
        f"{worst.seen:,}): small writing may be lost. preprocessor_config.json, or processor_config.json, says how far"
    )


def _fit(config: Config, name: str, source: str, lengths: Sequence[_Length]) -> list[Complaint]:
    """A prompt as long as max_model_len is refused by the engine; one that leaves less than the longest answer may end
    in answers that are cut."""
    engine = config.models[name].engine
    key, most = (
        ("rollout.sampling.max_tokens", config.rollout.sampling.max_tokens)
        if source == "train"
        else ("evaluation.max_tokens", config.evaluation_tokens)
    )
    longest = max(lengths, key=lambda one: one.tokens)
    say(
        f"{name}: prompts of data.{source} have {min(one.tokens for one in lengths)} to {longest.tokens} tokens "
        f"(the longest: {longest.problem.id}), answers up to {most}, together at most {engine.max_model_len}"
    )
    refused = [one for one in lengths if one.tokens >= engine.max_model_len]
    cut = [one for one in lengths if engine.max_model_len - most < one.tokens < engine.max_model_len]
    if cut:
        say(f"  {len(cut)} of {len(lengths)} prompts leave less than {key}: answers to them may be cut")
    if len(refused) <= config.rollout.max_set_aside_share * len(lengths):
        if refused:
            say(f"  {len(refused)} of {len(lengths)} prompts do not fit {name}.engine.max_model_len and are set aside")
        return []
    return [
        Complaint(
            where=f"{name}.engine.max_model_len",
            expected=f"more than the prompts of data.{source}, up to {longest.tokens} tokens",
            found=f"{engine.max_model_len}, and {len(refused)} of {len(lengths)} do not fit",
            remedy="Raise it, use smaller pictures, or take the rows out.",
        )
    ]
