"""Choices and labels: in whatever form a row has them, the label becomes the text of the right choice."""

from __future__ import annotations

import ast
import functools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from string import ascii_uppercase
from typing import Any, Literal

from masters_ray.data.scalars import BadRowError, as_text, shown

Reading = Literal["text", "key", "index"]
"""What a label says of its choice: its text, what stands before it (its letter), or its place, counted from 0."""
READINGS: tuple[Reading, ...] = ("text", "key", "index")

_LINE_BREAKS = re.compile(r"\s*[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]\s*")
_MARKED = re.compile(r"\(?([A-Za-z](?=[).:])|\d{1,2}(?=[).]))(?:\)|[.:](?=\s))\s*(\S.*)", re.DOTALL)
""""A. red", "(A) red", "B: blue", "1. red"; not "1: 2", a ratio."""
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
    places: tuple[int, ...] = ()
    """Of each: where it stands in the row, from 0; they are in the order of their letters."""


def choices_of(value: Any) -> Choices:
    """The choices in a list of texts or of {label, text}, in a mapping of letters to texts, in {label: […], text: […]},
    or in one of these as JSON or Python. Raises BadRowError."""
    pairs = _pairs(_parsed(value))
    if not pairs:
        return Choices()
    if not 2 <= len(pairs) <= len(ascii_uppercase):
        raise BadRowError(f"choices: expected 2 to {len(ascii_uppercase)}, which have letters, found {len(pairs)}")
    written = [on_one_line(as_text(text, f"choices: entry {number}")) for number, (_, text) in enumerate(pairs, 1)]
    keys = ["" if key is None else as_text(key, "choices: label") for key, _ in pairs]
    marked = [found for text in written if (found := _MARKED.fullmatch(text))]
    if len(marked) == len(written) and not any(keys):
        keys = [found.group(1) for found in marked]
    places = list(range(len(written)))
    if not all(keys):
        keys = list(ascii_uppercase[: len(written)])
    elif all(re.fullmatch("[A-Za-z]", key) for key in keys):
        keys = [key.upper() for key in keys]
        places.sort(key=keys.__getitem__)
    keys = [keys[place] for place in places]
    texts = [written[place] for place in places]
    if len(marked) == len(written) and keys in (list(ascii_uppercase[: len(keys)]), _numbers(len(keys))):
        texts = [marked[place].group(2) for place in places]
    _refuse(texts, keys)
    return Choices(
        texts=tuple(texts),
        keys=tuple(keys),
        written=tuple(written[place] for place in places),
        places=tuple(places),
    )


def on_one_line(text: str) -> str:
    """The text with a blank for every line break: each choice is a line of the question."""
    return _LINE_BREAKS.sub(" ", text)


def _numbers(count: int) -> list[str]:
    return [str(number) for number in range(1, count + 1)]


def readings(label: str, choices: Choices) -> dict[Reading, int]:
    """The index of the choice that a label names, by each way to read it that finds one."""
    found: dict[Reading, int | None] = {
        "text": _by_text(on_one_line(label), choices),
        "key": _index([key.casefold() for key in choices.keys], label.strip("()[].: ").casefold()),
        "index": _index([str(place) for place in choices.places], label),
    }
    return {name: index for name, index in found.items() if index is not None}


def right_choice(label: str, choices: Choices, usual: Reading) -> str:
    """The text of the choice that a label names; without choices the label. usual: how the labels of the source are
    read; where that finds none, they are read as texts, then as keys. A number is an index only where they usually are:
    elsewhere it is a text that is wrong. Raises BadRowError."""
    if not choices.texts:
        return label
    found = readings(label, choices)
    for reading in (usual, *READINGS):
        if reading in found and reading in (usual, "text", "key"):
            return choices.texts[found[reading]]
    raise BadRowError(
        f"answer: {shown(label)} is none of the choices {shown(list(choices.texts))}; expected the text of one, its "
        f"letter ({choices.keys[0]} to {choices.keys[-1]}) or its index (0 to {len(choices.texts) - 1}), if the labels "
        "of its source are indices"
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
        for parse in (functools.partial(json.loads, parse_float=Decimal), ast.literal_eval):
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
        if isinstance(texts, list):
            if labels is None:
                return [(None, text) for text in texts]
            if isinstance(labels, list) and len(labels) == len(texts):
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


def _refuse(texts: Sequence[str], keys: Sequence[str]) -> None:
    if not all(texts):
        raise BadRowError(f"choices: entry {texts.index('') + 1} is empty")
    for names in (texts, keys):
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise BadRowError(f"choices: {shown(twice[0])} stands there twice")
