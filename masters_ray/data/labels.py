"""Reads a row's choices and its label in all their forms; the label becomes the text of the right choice."""

import ast
import re
from collections.abc import Sequence
from string import ascii_uppercase
from typing import Any, Literal, NamedTuple

from masters_ray.data.texts import BadRowError, as_text, shown

Reading = Literal["text", "key", "index"]
"""How a label names its choice: by its text, its key (the letter before it), or its index from 0."""
_MARKED = re.compile(r"\(?([A-Za-z]|\d\d?(?!:))(?:\)|[.:](?=\s))\s*(\S.*)")
"""Matches "A. red", "(A) red", "B: blue", "1. red"; not "1: 2", a ratio."""


class Choice(NamedTuple):
    key: str
    """Letter of the choice, or the row's own key."""
    text: str
    """Text without its letter, on one line, since each choice is a line of the question."""


def choices_of(value: Any) -> list[Choice]:
    """Returns the choices. value: a list of texts or of {label, text}, a mapping of letters to texts, {label: […],
    text: […]}, or one of these written as Python; empty: a free question. Raises BadRowError."""
    pairs = _pairs(_parsed(value))
    if not pairs:
        return []
    if not 2 <= len(pairs) <= len(ascii_uppercase):
        raise BadRowError(f"choices: expected 2 to {len(ascii_uppercase)}, which have letters, found {len(pairs)}")
    texts = [" ".join(as_text(text, f"choices: entry {number}").split()) for number, (_, text) in enumerate(pairs, 1)]
    letters, numbers = list(ascii_uppercase[: len(pairs)]), [str(number + 1) for number in range(len(pairs))]
    keys = ["" if key is None else as_text(key, "choices: label").upper() for key, _ in pairs]
    marked = [found for text in texts if (found := _MARKED.fullmatch(text))]
    all_marked = len(marked) == len(texts)
    if "" in keys:
        keys = [found[1].upper() for found in marked] if all_marked else letters
    if all_marked and set(keys) in (set(letters), set(numbers)):
        texts = [found[2] for found in marked]
    for names in (texts, keys):
        if "" in names or len(set(names)) < len(names):
            raise BadRowError(f"choices: one is empty or stands there twice: {shown(names)}")
    return [Choice(*one) for one in zip(keys, texts, strict=True)]


def readings(label: str, choices: Sequence[Choice]) -> dict[Reading, Choice]:
    """Returns, for each way to read the label that finds a choice, that choice."""
    key = label.strip("()[].: ").casefold()
    found: dict[Reading, Choice | None] = {
        "text": _by_text(" ".join(label.split()), choices),
        "key": next((one for one in choices if one.key.casefold() == key), None),
        "index": next((one for place, one in enumerate(choices) if str(place) == label), None),
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
        [one for one in choices if one.text == label],
        [one for one in choices if one.text.casefold() == label.casefold()],
        [one for one in choices if (one.key.casefold(), one.text.casefold()) == parts],
    )
    return next((found[0] for found in ways if len(found) == 1), None)


def _parsed(value: Any) -> Any:
    """Parses a list or mapping written as Python, as MMMU has it; returns other values unchanged."""
    if isinstance(value, str) and value.strip()[:1] in ("[", "{"):
        try:
            return ast.literal_eval(value.strip())
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            return value
    return value


def _pairs(value: Any) -> list[tuple[Any, Any]]:
    """Returns (key or None, text) of every choice. Raises BadRowError."""
    if not value:
        return []
    if isinstance(value, dict):
        keys, texts = value.get("label"), value.get("text")
        if isinstance(keys, list) and isinstance(texts, list) and len(keys) == len(texts):
            return list(zip(keys, texts, strict=True))
        return [(key, text) for key, text in value.items() if text is not None]
    if not isinstance(value, list | tuple):
        raise BadRowError(f"choices: expected a list of texts, found {shown(value)}")
    if all(isinstance(one, dict) for one in value):
        return [(one.get("label"), one.get("text")) for one in value]
    return [(None, text) for text in value]
