"""Reads a checkpoint's special tokens from its JSON files: marks of turns and pictures, and tokens that end an answer.
Needs neither transformers nor torch."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from masters_ray.data import NO_SPECIAL
from masters_ray.errors import CheckpointError
from masters_ray.parts import PLACEHOLDER_IDS

_NAMED = ("tokenizer_config.json", "special_tokens_map.json", "processor_config.json", "preprocessor_config.json")
_LISTED = ("additional_special_tokens", "extra_special_tokens", "model_specific_special_tokens")


def texts(folder: Path) -> frozenset[str]:
    """Returns the texts of the tokenizer's and processor's special tokens, for example ``<|im_end|>`` or ``<image>``.

    Leaves out a special token that is a word or a single character (a padding token "!"): texts may well contain it.
    """
    marks = placeholder_ids(folder)
    added = _added(_read(folder / "tokenizer.json"))
    found: list[Any] = [one for one in added.values() if one.get("special") or one["id"] in marks]
    for content in (_read(folder / name) for name in _NAMED):
        found += [value for key, value in content.items() if key.endswith("_token")]
        found += [one for one in (content.get("added_tokens_decoder") or {}).values() if one.get("special")]
        for listed in (content.get(key) or () for key in _LISTED):
            found += listed.values() if isinstance(listed, dict) else listed
    texts = {text for text in map(_text, found) if text is not None}
    return frozenset(text for text in texts if len(text) > 1 and not text.isalnum())


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
    named = content.get("eos_token_id", (content.get("text_config") or {}).get("eos_token_id"))
    ids = [one for one in (named if isinstance(named, list) else [named]) if one is not None]
    if not all(type(one) is int and one >= 0 for one in ids):
        found = f"found {json.dumps(named)}. Write the numbers that tokenizer.json has for these tokens."
        raise CheckpointError(f"{file}: eos_token_id: expected a token's id or a list of them, {found}")
    tokenizer = _read(folder / "tokenizer.json")
    vocabulary = (tokenizer.get("model") or {}).get("vocab") or {}
    if isinstance(vocabulary, list):  # a Unigram model lists (token, score)
        vocabulary = {token: number for number, (token, _) in enumerate(vocabulary)}
    vocabulary |= {text: one["id"] for text, one in _added(tokenizer).items()}
    own = vocabulary.get(_text(_read(folder / "tokenizer_config.json").get("eos_token")))
    return {*ids, own} - {None}


def pattern(folders: Iterable[Path]) -> str:
    """Returns a regular expression that matches every special token of these checkpoints, the longest first, or nothing
    if there is none. It ignores case for a tokenizer that lower-cases."""
    rules: dict[str, str] = {}
    for folder in folders:
        normalizer = json.dumps(_read(folder / "tokenizer.json").get("normalizer"))
        folds = '"Lowercase"' in normalizer or '"lowercase": true' in normalizer
        for token in texts(folder):
            rules[token] = f"(?i:{re.escape(token)})" if folds else re.escape(token)
    return "|".join(rules[token] for token in sorted(rules, key=lambda token: (-len(token), token))) or NO_SPECIAL


def _added(tokenizer: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {one["content"]: one for one in tokenizer.get("added_tokens") or []}


def _text(token: Any) -> str | None:
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None


def _read(file: Path) -> dict[str, Any]:
    """Returns {} when the file is missing or holds no JSON object; ``weights.check`` reports that."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
