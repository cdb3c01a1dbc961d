"""Reads a row's choices, label and references in all their forms; the label becomes the text of the right choice."""

import ast
import re
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from string import ascii_uppercase
from typing import Any, Literal

from masters_ray.data.texts import BadRowError, as_text, shown

Reading = Literal["text", "letter", "index", "number"]
"""How a label names its choice: by its text, its letter (or the row's own key), its index from 0, its number from 1."""
_MARKED = re.compile(r"\(?([A-Za-z]|\d\d?(?!:))(?:\)|[.:](?=\s))\s*(\S.*)")
"""Matches "A. red", "(A) red", "B: blue", "1. red"; not "1: 2", a ratio."""


def choices_of(value: Any) -> dict[str, str]:
    """Returns the choices in their order: letter, or the row's own key → text without it, on one line, since each
    choice is a line of the question. value: a list of texts or of {label, text}, a mapping of letters to texts,
    {label: […], text: […]}, or one of these written as Python; empty: a free question. Raises BadRowError."""
    pairs = _pairs(value)
    if not pairs:
        return {}
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
    return dict(zip(keys, texts, strict=True))


def readings(label: str, choices: Mapping[str, str]) -> dict[Reading, str]:
    """Returns, for each way to read the label that finds a choice, the choice's text."""
    words = " ".join(label.split())
    marked = _MARKED.fullmatch(words)
    whole = (marked[1].upper(), marked[2].casefold()) if marked else None
    by_letter = set(choices) <= set(ascii_uppercase)
    numbers = map(ascii_uppercase.index, choices) if by_letter else range(len(choices))
    places = dict(zip(map(str, numbers), choices.values(), strict=True))
    ways = (
        [text for text in choices.values() if text == words],
        [text for text in choices.values() if text.casefold() == words.casefold()],
        [text for key, text in choices.items() if (key, text.casefold()) == whole],
    )
    found: dict[Reading, str | None] = {
        "text": next((same[0] for same in ways if len(same) == 1), None),
        "letter": choices.get(label.strip("()[].: ").upper()),
        "index": places.get(label),
        "number": places.get(str(int(label) - 1)) if label.isdecimal() else None,
    }
    return {name: text for name, text in found.items() if text is not None}


def right_choice(label: str, choices: Mapping[str, str], reading: Reading | None) -> str:
    """Returns the text of the choice that a label names; without choices, the label. reading: None: by text, otherwise
    by letter; a number is never taken for an index. Raises BadRowError when no choice is found."""
    if not choices:
        return label
    found = readings(label, choices)
    for one in (reading,) if reading else ("text", "letter"):
        if one in found:
            return found[one]
    expected = f"the {reading} of one" if reading else "the text of one or its letter"
    counted = not reading and ("index" in found or "number" in found)
    remedy = "; set answer_is=index if labels count from 0, number if from 1" if counted else ""
    raise BadRowError(
        f"answer: {shown(label)} is none of the choices {shown(list(choices.values()))}; expected {expected}{remedy}"
    )


def label_of(value: Any) -> tuple[str, tuple[str, ...]]:
    """Returns the label, and all references if there are several: the label is the most frequent, the first of equal
    ones. value: a text, number or date, or a list of them. Raises BadRowError."""
    several = value if isinstance(value, list | tuple) else [value]
    if isinstance(value, str) and value.strip()[:1] == "[":  # references written as Python, as A-OKVQA has them
        with suppress(ValueError, SyntaxError, RecursionError, MemoryError):
            found = ast.literal_eval(value.strip())
            several = found if found and all(isinstance(one, str) for one in found) else several
    if any(isinstance(one, dict) for one in several):
        keys = ", ".join(next(one for one in several if isinstance(one, dict)))
        raise BadRowError(f"answer: expected texts, found entries with {keys}: add the key, as in answers.answer")
    texts = [text for one in several if one is not None and (text := as_text(one, "answer"))]
    if not texts:
        raise BadRowError("empty answer")
    [(label, _)] = Counter(texts).most_common(1)
    return label, tuple(texts) if len(set(texts)) > 1 else ()


def _pairs(value: Any) -> list[tuple[Any, Any]]:
    """Returns (key or None, text) of every choice. Raises BadRowError."""
    if isinstance(value, str) and value.strip()[:1] in ("[", "{"):  # written as Python, as MMMU has it
        with suppress(ValueError, SyntaxError, RecursionError, MemoryError):
            value = ast.literal_eval(value.strip())
    if not value:
        return []
    if isinstance(value, dict):
        keys, texts = value.get("label"), value.get("text")
        if isinstance(keys, list) and isinstance(texts, list) and len(keys) == len(texts):
            return list(zip(keys, texts, strict=True))
        return [(key, text) for key, text in value.items() if text not in (None, "")]
    if not isinstance(value, list | tuple):
        remedy = "write them so, or set fields.choices=[] if the question names them"
        raise BadRowError(f"choices: expected a list of texts or a mapping of letters, found {shown(value)}: {remedy}")
    if all(isinstance(one, dict) for one in value):
        if "text" not in value[0]:
            keys = ", ".join(value[0])
            raise BadRowError(f"choices: expected texts, found entries with {keys}: add the key, as in choices.value")
        return [(one.get("label"), one.get("text")) for one in value]
    return [(None, text) for text in value]
