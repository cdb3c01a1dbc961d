"""Tokens of a checkpoint that mean something beside their text, read from its JSON files: marks of turns and pictures,
and what ends an answer. Needs neither transformers nor torch."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from masters_ray.data import NO_SPECIAL
from masters_ray.errors import CheckpointError

_NAMED = ("tokenizer_config.json", "special_tokens_map.json", "processor_config.json", "preprocessor_config.json")
_LISTED = ("additional_special_tokens", "extra_special_tokens", "model_specific_special_tokens")
_PLACEHOLDER = re.compile(r"(image|video|audio)_token_(id|index)")


def special_tokens(folder: Path) -> frozenset[str]:
    """The texts that a checkpoint's tokenizer or processor takes for a mark, such as ``<|im_end|>`` or ``<image>``.

    A mark that is a word or a single character (a padding token "!") is left out: texts hold it for its own sake.
    """
    added = _read(folder / "tokenizer.json").get("added_tokens") or []
    found = {one["content"] for one in added if one.get("special")}
    contents = {one["id"]: one["content"] for one in added}
    found |= {contents[number] for number in placeholder_ids(folder) if number in contents}
    for name in _NAMED:
        content = _read(folder / name)
        declared = (content.get("added_tokens_decoder") or {}).values()
        named = [value for key, value in content.items() if key.endswith("_token")]
        named += [one for key in _LISTED for one in _each(content.get(key))]
        named += [one for one in declared if one.get("special")]
        found |= {text for text in map(_text, named) if text}
    return frozenset(token for token in found if len(token) > 1 and not token.isalnum())


def placeholder_ids(folder: Path) -> set[int]:
    """Ids that stand for pictures, videos or sounds, as the model's configuration has them."""
    content = _read(folder / "config.json")
    return {value for key, value in content.items() if _PLACEHOLDER.fullmatch(key) and isinstance(value, int)}


def end_ids(folder: Path) -> set[int]:
    """Tokens that end an answer, as vLLM reads them: the tokenizer's own end token, and all of generation_config.json,
    or of config.json where that is missing. Raises CheckpointError when that names none."""
    file = folder / "generation_config.json"
    content = _read(file if file.is_file() else folder / "config.json")
    found = content.get("eos_token_id", (content.get("text_config") or {}).get("eos_token_id"))
    named = [one for one in (found if isinstance(found, list) else [found]) if one is not None]
    if not all(type(one) is int and one >= 0 for one in named):
        raise CheckpointError(
            f"{file if file.is_file() else folder / 'config.json'}: eos_token_id: expected a token's id or a list of "
            f"them, found {json.dumps(found)}. Write the numbers that tokenizer.json has for these tokens."
        )
    own = _ids(folder).get(_text(_read(folder / "tokenizer_config.json").get("eos_token")))
    return {*named, *([] if own is None else [own])}


def pattern(folders: Iterable[Path]) -> str:
    """A regular expression that finds every special token of these checkpoints in a text, the longest first; one that
    finds nothing when there is none."""
    rules: dict[str, str] = {}
    for folder in folders:
        content = _read(folder / "tokenizer.json")
        flags = {one["content"]: one for one in content.get("added_tokens") or []}
        normalizer = json.dumps(content.get("normalizer"))
        folds = '"Lowercase"' in normalizer or '"lowercase": true' in normalizer
        for token in special_tokens(folder):
            rules[token] = _rule(token, flags.get(token, {}), folds)
    return "|".join(rules[token] for token in sorted(rules, key=lambda token: (-len(token), token))) or NO_SPECIAL


def _ids(folder: Path) -> dict[str | None, int]:
    content = _read(folder / "tokenizer.json")
    vocabulary = (content.get("model") or {}).get("vocab") or {}
    if isinstance(vocabulary, list):  # a Unigram model's, with scores
        vocabulary = {token: number for number, (token, _) in enumerate(vocabulary)}
    return {**vocabulary, **{one["content"]: one["id"] for one in content.get("added_tokens") or []}}


def _rule(token: str, flags: dict[str, Any], folds: bool) -> str:
    found = re.escape(token)
    if flags.get("single_word"):
        found = rf"(?<!\w){found}(?!\w)"
    return f"(?i:{found})" if folds and flags.get("normalized") else found


def _each(value: Any) -> Iterator[Any]:
    yield from value.values() if isinstance(value, dict) else value or ()


def _text(token: Any) -> str | None:
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None


def _read(file: Path) -> dict[str, Any]:
    """{} where there is no such file, or no JSON object in it: ``weights.check`` complains of what is missing."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
