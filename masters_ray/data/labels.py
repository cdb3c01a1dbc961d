"""Reads a row's choices and its label in all their forms; the label becomes the text of the right choice."""

from __future__ import annotations

import ast
import functools
import json
import re
from collections.abc import Sequence
from decimal import Decimal
from string import ascii_uppercase
from typing import Any, Literal, NamedTuple

from masters_ray.data.texts import BadRowError, as_text, shown

Reading = Literal["text", "key", "index"]
"""How a label names its choice: by its text, its key (the letter before it), or its index from 0."""
READINGS: tuple[Reading, ...] = ("text", "key", "index")

_LINE_BREAKS = re.compile(r"\s*[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]\s*")
_MARKED = re.compile(r"\(?([A-Za-z](?=[).:])|\d{1,2}(?=[).]))(?:\)|[.:](?=\s))\s*(\S.*)", re.DOTALL)
"""Matches "A. red", "(A) red", "B: blue", "1. red"; not "1: 2", a ratio."""
_KEY_NAMES = ("label", "key", "letter", "id")
_TEXT_NAMES = ("text", "value", "content", "choice", "option")
_LONGEST = 100_000
"""Most characters of a list that is written as a text and parsed."""


class Choice(NamedTuple):
    key: str
    """Letter of the choice, or the row's own key."""
    text: str
    """Text without its letter, on one line."""
    written: str
    """Text as the row has it, on one line."""
    place: int
    """Index in the row, from 0."""


def choices_of(value: Any) -> list[Choice]:
    """Returns the choices, sorted by letter. value: a list of texts or of {label, text}, a mapping of letters to texts,
    {label: […], text: […]}, or one of these as JSON or Python; empty: a free question. Raises BadRowError."""
    pairs = _pairs(_parsed(value))
    if not pairs:
        return []
    if not 2 <= len(pairs) <= len(ascii_uppercase):
        raise BadRowError(f"choices: expected 2 to {len(ascii_uppercase)}, which have letters, found {len(pairs)}")
    written = [_on_one_line(as_text(text, f"choices: entry {number}")) for number, (_, text) in enumerate(pairs, 1)]
    keys = ["" if key is None else as_text(key, "choices: label") for key, _ in pairs]
    texts = written
    marked = [found for text in written if (found := _MARKED.fullmatch(text))]
    all_marked = len(marked) == len(written)
    if all_marked and not any(keys):
        keys = [found[1] for found in marked]
    letters, numbers = list(ascii_uppercase[: len(pairs)]), [str(number + 1) for number in range(len(pairs))]
    if not all(keys):
        keys = letters
    lettered = all(re.fullmatch("[A-Za-z]", key) for key in keys)
    if lettered:
        keys = [key.upper() for key in keys]
    if all_marked and (keys == numbers or sorted(keys) == letters):
        texts = [found[2] for found in marked]
    choices = [Choice(*one) for one in zip(keys, texts, written, range(len(pairs)), strict=True)]
    if lettered:
        choices.sort(key=lambda one: one.key)
    for name in ("text", "key"):
        names = [getattr(choice, name) for choice in choices]
        if "" in names or len(set(names)) < len(names):
            raise BadRowError(f"choices: one is empty or stands there twice: {shown(names)}")
    return choices


def readings(label: str, choices: Sequence[Choice]) -> dict[Reading, Choice]:
    """Returns, for each way to read the label that finds a choice, that choice."""
    key = label.strip("()[].: ").casefold()
    found: dict[Reading, Choice | None] = {
        "text": _by_text(_on_one_line(label), choices),
        "key": next((one for one in choices if one.key.casefold() == key), None),
        "index": next((one for one in choices if str(one.place) == label), None),
    }
    return {name: choice for name, choice in found.items() if choice is not None}


def right_choice(label: str, choices: Sequence[Choice], usual: Reading) -> str:
    """Returns the text of the choice that a label names; without choices, the label. usual: reading of most labels of
    the source, tried first, then text, then key. A number is read as an index only when that is ``usual``. Raises
    BadRowError when no reading finds a choice."""
    if not choices:
        return label
    found = readings(label, choices)
    for reading in (usual, "text", "key"):
        if reading in found:
            return found[reading].text
    raise BadRowError(
        f"answer: {shown(label)} is none of the choices {shown([one.text for one in choices])}; expected the text of "
        f"one, its letter ({choices[0].key} to {choices[-1].key}) or, if all labels are, its index from 0"
    )


def _by_text(label: str, choices: Sequence[Choice]) -> Choice | None:
    marked = _MARKED.fullmatch(label)
    parts = tuple(part.casefold() for part in marked.groups()) if marked else None
    ways = (
        [one for one in choices if label in (one.text, one.written)],
        [one for one in choices if one.text.casefold() == label.casefold()],
        [one for one in choices if (one.key.casefold(), one.text.casefold()) == parts],
    )
    return next((found[0] for found in ways if len(found) == 1), None)


def _on_one_line(text: str) -> str:
    """Replaces line breaks by blanks, since each choice is a line of the question."""
    return _LINE_BREAKS.sub(" ", text)


def _parsed(value: Any) -> Any:
    """Parses a list or mapping written as a text, and lines such as "A. red"; returns other values unchanged."""
    if not isinstance(value, str):
        return value
    text = value.strip()
    if text[:1] in ("[", "{") and len(text) <= _LONGEST:
        for parse in (functools.partial(json.loads, parse_float=Decimal), ast.literal_eval):
            try:
                return parse(text)
            except (ValueError, SyntaxError, RecursionError, MemoryError):
                continue
    lines = [line for line in text.splitlines() if line.strip()]
    return lines if lines and all(_MARKED.fullmatch(line.strip()) for line in lines) else value if text else None


def _pairs(value: Any) -> list[tuple[Any, Any]]:
    """Returns (key or None, text) of every choice. Raises BadRowError."""
    if not value:
        return []
    if isinstance(value, dict):
        keys, texts = _key_and_text(value)
        if isinstance(texts, list) and keys is None:
            return [(None, text) for text in texts]
        if isinstance(texts, list) and isinstance(keys, list) and len(keys) == len(texts):
            return list(zip(keys, texts, strict=True))
        return [(key, text) for key, text in value.items() if text is not None]
    if not isinstance(value, list | tuple):
        raise BadRowError(f"choices: expected a list of texts, found {shown(value)}")
    if all(isinstance(one, dict) for one in value):
        return [_key_and_text(one) for one in value]
    if all(isinstance(one, list | tuple) and len(one) == 2 for one in value):  # a column of type map
        return [(key, text) for key, text in value]
    return [(None, text) for text in value]


def _key_and_text(choice: dict[str, Any]) -> tuple[Any, Any]:
    key, text = (next((choice[name] for name in names if name in choice), None) for names in (_KEY_NAMES, _TEXT_NAMES))
    return key, text
