"""Reads a checkpoint's special tokens from its JSON files: marks of turns and pictures, ends of answers."""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from masters_ray.data import NO_SPECIAL
from masters_ray.errors import CheckpointError
from masters_ray.models.weights import read_json
from masters_ray.parts import PLACEHOLDER_IDS

_NAMED = ("tokenizer_config.json", "special_tokens_map.json", "processor_config.json", "preprocessor_config.json")


def placeholder_ids(folder: Path) -> set[int]:
    """Returns the ids of picture, video and audio placeholders that config.json names."""
    content = _read(folder / "config.json")
    return {value for key, value in content.items() if PLACEHOLDER_IDS.fullmatch(key) and isinstance(value, int)}


def end_ids(folder: Path) -> set[int]:
    """Returns the ids of tokens at which vLLM ends an answer: the tokenizer's end token, and those in
    generation_config.json, or in config.json without that file. Raises CheckpointError when an id is malformed."""
    file = folder / "generation_config.json"
    file = file if file.is_file() else folder / "config.json"
    content = _read(file)
    named = content.get("eos_token_id", content.get("text_config", {}).get("eos_token_id"))
    ids = [one for one in (named if isinstance(named, list) else [named]) if one is not None]
    if not all(type(one) is int and one >= 0 for one in ids):
        found = f"found {json.dumps(named)}. Write the numbers that tokenizer.json has for these tokens."
        raise CheckpointError(f"{file}: eos_token_id: expected a token's id or a list of them, {found}")
    own = _texts(_read(folder / "tokenizer_config.json").get("eos_token"))
    return {*ids, *(one["id"] for one in _added(folder) if one["content"] in own)}


def pattern(folders: Iterable[Path]) -> str:
    """Returns a regular expression that matches every special token of these checkpoints, the longest first, such as
    ``<|im_end|>``. Leaves out one that is a word or a single character (a padding token "!"): texts may contain it."""
    found: list[Any] = []
    for folder in folders:
        marks = placeholder_ids(folder)
        found += [one for one in _added(folder) if one.get("special") or one["id"] in marks]
        for content in (_read(folder / name) for name in _NAMED):
            found += [value for key, value in content.items() if key.endswith(("_token", "_special_tokens"))]
            found += [one for one in content.get("added_tokens_decoder", {}).values() if one.get("special")]
    texts = {text for text in _texts(found) if len(text) > 1 and not text.isalnum()}
    return "|".join(map(re.escape, sorted(texts, key=lambda text: (-len(text), text)))) or NO_SPECIAL


def _added(folder: Path) -> list[dict[str, Any]]:
    """Returns the tokens that the tokenizer has beside its model's: ``{"id": …, "content": …, "special": …}``."""
    return _read(folder / "tokenizer.json").get("added_tokens") or []


def _texts(value: Any) -> list[str]:
    """Returns the texts of a token, or of all tokens in a list or mapping of them, as these files write them."""
    match value:
        case str():
            return [value]
        case {"content": str(text)}:
            return [text]
        case list() | dict():
            return [text for one in (value.values() if isinstance(value, dict) else value) for text in _texts(one)]
    return []


def _read(file: Path) -> dict[str, Any]:
    return read_json(file) if file.is_file() else {}
