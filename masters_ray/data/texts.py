"""Single values of a row as the texts that people meant by them, and why a row is dropped."""

from __future__ import annotations

import re
import unicodedata
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any

from masters_ray.records import Problem, RejectedBy

NO_SPECIAL = "(?!)"
"""A regular expression that matches nothing."""
_SHOWN = 100
"""Characters of a value in a message."""
_DIGITS = 30
"""Numbers of more digits before or after the point keep their exponent."""
_BLANKS = "".join(one for one in map(chr, range(0x3001)) if one.isspace())
_INVISIBLE = "\u200b\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2060\u2066\u2067\u2068\u2069\ufeff"
"""Zero-width spaces and marks of direction: copied along from web pages and spreadsheets."""


class BadRowError(Exception):
    """Why a row cannot be used: key, what was expected and found, and the remedy. It becomes a Rejected of ``kind``."""

    kind: RejectedBy = "row"


class SpecialTokenError(BadRowError):
    """A text that holds a special token of a tokenizer."""

    kind = "text"


class BadPictureError(BadRowError):
    """A picture that is missing, broken or too large; the message is the reason."""

    kind = "picture"


def shown(value: Any) -> str:
    """A value for a message, in about 100 characters."""
    return cut(repr(value[: 2 * _SHOWN] if isinstance(value, str | bytes | list | tuple) else value))


def cut(text: str, most: int = _SHOWN) -> str:
    """The text for a message: on one line, of about so many characters from both ends, without any that cannot be
    written."""
    short = text if len(text) <= most else f"{text[: most // 3]} … {text[-most * 2 // 3 :]}"
    return "".join(one if one.isprintable() else "\ufffd" for one in short)


def bare(text: str) -> str:
    """The text without blanks and invisible characters at its ends."""
    return text.strip(_BLANKS + _INVISIBLE)


def as_text(value: Any, key: str) -> str:
    """The text of a value: 3.0 → "3", Decimal("12.40") → "12.40", a date → "2018-01-02", ["red"] → "red".

    Raises BadRowError, which names the key, for what is not a single text, number or date, and for what may stand for
    several texts.
    """
    if isinstance(value, list | tuple) and len(value) == 1:
        value = value[0]
    if isinstance(value, bytes):
        try:
            value = value.decode()
        except UnicodeDecodeError as error:
            raise BadRowError(f"{key}: expected a text in UTF-8, found the bytes {shown(value)}") from error
    match value:
        case str():
            return bare(value)
        case bool():
            raise BadRowError(f"{key}: {value} may stand for yes, for true or for 1: write the text that is meant")
        case int():
            return str(value)
        case float() | Decimal():
            return _number(value, key)
        case datetime():
            return value.isoformat(" ").removesuffix(" 00:00:00")
        case date() | time():
            return value.isoformat()
        case [_, *_]:
            raise BadRowError(
                f"{key}: expected a single text, found {len(value)} ({shown(value)}): keep the best of them"
            )
    raise BadRowError(f"{key}: expected a text or a number, found {shown(value)}")


def _number(value: float | Decimal, key: str) -> str:
    number = Decimal(repr(value)) if isinstance(value, float) else value
    if not number.is_finite():
        raise BadRowError(f"{key}: expected a number, found {value}")
    if not number:
        number = abs(number)  # no −0
    text = format(number, "f") if abs(number.adjusted()) < _DIGITS else str(number)
    return text.removesuffix(".0")  # whole numbers of a column that has gaps become 3.0 on the way


def special_in(text: str, pattern: str) -> str | None:
    """The first special token in a text, as it stands there or as a normalizing tokenizer would read it; None without.

    pattern: a regular expression that matches all of them.
    """
    found = re.search(pattern, text)
    if found is None and not text.isascii():
        found = re.search(pattern, unicodedata.normalize("NFKC", text))
    return found.group() if found else None


def check_texts(problem: Problem, special: str) -> None:
    """Raises SpecialTokenError for a question, an answer or a choice in which the regular expression ``special`` finds
    a token, BadRowError for a text that cannot be written as UTF-8 or holds NUL."""
    asked = {"question": problem.question, "answer": problem.label}
    asked |= {f"choice {number}": choice for number, choice in enumerate(problem.choices, 1)}
    named = {"id": problem.id, "kind": problem.kind, "image": "".join(one.path or "" for one in problem.pictures)}
    for key, text in (asked | named).items():
        if re.search("[\0\ud800-\udfff]", text):
            raise BadRowError(f"{key}: holds the character NUL or half of a surrogate pair: take it out")
    for key, text in asked.items():
        if (token := special_in(text, special)) is not None:
            raise SpecialTokenError(
                f"{key}: {token!r} is a special token of the teacher's or the student's tokenizer, which texts must "
                "not hold; write it otherwise, or take it out"
            )
