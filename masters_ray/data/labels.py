"""Choices and labels: in whatever form a row has them, the label becomes the text of the right choice."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Any, Literal

from masters_ray.data.scalars import BadRowError, as_text, shown

Reading = Literal["text", "key", "index"]
"""What a label says of its choice: its text, what stands before it (its letter), or its place, counted from 0."""
READINGS: tuple[Reading, ...] = ("text", "key", "index")

_MARKED = re.compile(r"\(?([A-Za-z]|\d{1,2})(?:\)|[.:](?=\s))\s*(\S.*)", re.DOTALL)
""""A. red", "(A) red", "B) blue", "1. red"."""
_KEY_NAMES = ("label", "key", "letter", "id")
_TEXT_NAMES = ("text", "value", "content", "choice", "option")
_LONGEST = 100_000
"""Characters of a list that is written as a text."""


@dataclass(frozen=True, kw_only=True)
class Choices:
    """The choices of a question; none: it is a free one."""

    texts: tuple[str, ...] = ()
    """Without letters before them."""
    keys: tuple[str, ...] = ()
    """What each is called: its letter, or what the row has in its place."""
    written: tuple[str, ...] = ()
    """As they stand in the row."""


def choices_of(value: Any) -> Choices:
    """The choices in a list of texts or of {label, text}, in a mapping of letters to texts, in {label: […], text: […]},
    or in one of these as JSON or Python. Raises BadRowError."""
    pairs = _pairs(_parsed(value))
    if not pairs:
        return Choices()
    written = tuple(as_text(text, f"choices: entry {number}") for number, (_, text) in enumerate(pairs, 1))
    keys, texts = [key and as_text(key, "choices: label") for key, _ in pairs], list(written)
    marked = [_MARKED.fullmatch(text) for text in written]
    marks = [found.group(1).upper() if found else "" for found in marked]
    if marks in (list(ascii_uppercase[: len(marks)]), [str(number) for number in range(1, len(marks) + 1)]):
        texts = [found.group(2) for found in marked if found]
        keys = marks
    if not all(keys):
        keys = list(ascii_uppercase[: len(texts)])
    _refuse(texts)
    order = list(range(len(texts)))
    if all(re.fullmatch("[A-Za-z]", key) for key in keys):
        order.sort(key=lambda index: keys[index].upper())
    return Choices(
        texts=tuple(texts[index] for index in order),
        keys=tuple(keys[index] for index in order),
        written=tuple(written[index] for index in order),
    )


def readings(label: str, choices: Choices) -> dict[Reading, int]:
    """The index of the choice that a label names, by each way to read it that finds one."""
    found: dict[Reading, int | None] = {
        "text": _by_text(label, choices),
        "key": _index([key.casefold() for key in choices.keys], label.strip("()[].: ").casefold()),
        "index": int(label) if re.fullmatch(r"[0-9]{1,2}", label) and int(label) < len(choices.texts) else None,
    }
    return {name: index for name, index in found.items() if index is not None}


def right_choice(label: str, choices: Choices, usual: Reading) -> str:
    """The text of the choice that a label names; without choices the label. usual: how the labels of the source are
    read; where that finds none, they are read as texts, then keys, then indices. Raises BadRowError."""
    if not choices.texts:
        return label
    found = readings(label, choices)
    for reading in (usual, *READINGS):
        if reading in found:
            return choices.texts[found[reading]]
    raise BadRowError(
        f"answer: {shown(label)} is none of the choices {shown(list(choices.texts))}; expected the text of one, its "
        f"letter ({choices.keys[0]} to {choices.keys[-1]}) or its index (0 to {len(choices.texts) - 1})"
    )


def _by_text(label: str, choices: Choices) -> int | None:
    for texts in (choices.texts, choices.written):
        if label in texts:
            return texts.index(label)
    folded = [text.casefold() for text in choices.texts]
    if folded.count(label.casefold()) == 1:
        return folded.index(label.casefold())
    marked = _MARKED.fullmatch(label)
    if marked is None:
        return None
    index = _index([key.casefold() for key in choices.keys], marked.group(1).casefold())
    return index if index is not None and folded[index] == marked.group(2).casefold() else None


def _index(names: Sequence[str], name: str) -> int | None:
    return names.index(name) if name in names else None


def _parsed(value: Any) -> Any:
    """Lists and mappings that are written as a text; lines "A. red" below each other."""
    if not isinstance(value, str):
        return value
    text = value.strip()
    if text[:1] in ("[", "{") and len(text) <= _LONGEST:
        for parse in (json.loads, ast.literal_eval):
            try:
                return parse(text)
            except (ValueError, SyntaxError, RecursionError, MemoryError):
                continue
    lines = [line for line in text.splitlines() if line.strip()]
    return lines if lines and all(_MARKED.fullmatch(line.strip()) for line in lines) else value if text else None


def _pairs(value: Any) -> list[tuple[Any, Any]]:
    """(key or None, text) of every choice."""
    if not value:
        return []
    if isinstance(value, dict):
        labels, texts = (
            next((value[name] for name in names if name in value), None) for names in (_KEY_NAMES, _TEXT_NAMES)
        )
        if isinstance(labels, list) and isinstance(texts, list) and len(labels) == len(texts):
            return list(zip(labels, texts, strict=True))
        return [(key, text) for key, text in value.items() if text is not None]
    if not isinstance(value, list | tuple):
        raise BadRowError(f"choices: expected a list of texts, found {shown(value)}")
    if all(isinstance(one, dict) for one in value):
        return [
            tuple(next((one[name] for name in names if name in one), None) for names in (_KEY_NAMES, _TEXT_NAMES))  # type: ignore[misc]
            for one in value
        ]
    if all(isinstance(one, list | tuple) and len(one) == 2 for one in value):  # a column of type map
        return [(key, text) for key, text in value]
    return [(None, text) for text in value]


def _refuse(texts: Sequence[str]) -> None:
    for number, text in enumerate(texts, 1):
        if not text:
            raise BadRowError(f"choices: entry {number} is empty")
        if text in texts[: number - 1]:
            raise BadRowError(f"choices: {shown(text)} stands there twice")
    if not 2 <= len(texts) <= len(ascii_uppercase):
        raise BadRowError(f"choices: expected 2 to {len(ascii_uppercase)}, which have letters, found {len(texts)}")
