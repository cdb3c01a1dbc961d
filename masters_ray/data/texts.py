"""Converts single values of a row to texts and checks them; the errors that say why a row is set aside."""

import re
import unicodedata
from contextlib import suppress
from datetime import date, time
from decimal import Decimal
from typing import Any

from masters_ray.records import Problem, RejectedBy

NO_SPECIAL = "(?!)"  # a regular expression that matches nothing
LONGEST, _SHOWN = 300, 100  # most characters in a message of a reason, or of all column names; of a value
_DIGITS = 30  # numbers with more digits before or after the point keep their exponent
_BLANKS = "".join(one for one in map(chr, range(0x3001)) if one.isspace())
_INVISIBLE = "\u200b\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2060\u2066\u2067\u2068\u2069\ufeff"
"""Zero-width spaces and direction marks, which come along when text is copied from web pages and spreadsheets."""


class BadRowError(Exception):
    """A row cannot be used; says key, what was expected and found, and the remedy. Becomes a Rejected of ``kind``."""

    kind: RejectedBy = "row"


class SpecialTokenError(BadRowError):
    kind = "text"


class BadPictureError(BadRowError):
    """A picture is missing, changed, broken or too large; the message is the reason."""

    kind = "picture"


def shown(value: Any) -> str:
    """Returns a value's repr for a message, in about 100 characters."""
    return cut(repr(value[: 2 * _SHOWN] if isinstance(value, str | bytes | list | tuple) else value))


def cut(text: str, most: int = _SHOWN) -> str:
    """Returns the text for a message: about ``most`` characters from both ends, with � for unprintable ones such as
    line breaks."""
    short = text if len(text) <= most else f"{text[: most // 3]} … {text[-most * 2 // 3 :]}"
    return short if short.isprintable() else "".join(one if one.isprintable() else "\ufffd" for one in short)


def bare(text: str) -> str:
    """Strips blanks and invisible characters from both ends."""
    return text.strip(_BLANKS + _INVISIBLE)


def as_text(value: Any, key: str) -> str:
    """Returns a value as a text: 3.0 → "3", Decimal("12.40") → "12.40", a date → "2018-01-02", ["red"] → "red".
    Raises BadRowError, naming ``key``, for anything else, also for true, which may mean yes, true or 1."""
    if isinstance(value, list | tuple) and len(value) == 1:
        [value] = value
    match value:
        case str():
            return bare(value)
        case bytes():
            with suppress(UnicodeDecodeError):
                return bare(value.decode())
        case int() if not isinstance(value, bool):
            return str(value)
        case float() | Decimal() if (number := Decimal(str(value))).is_finite():
            number = number or abs(number)  # without the sign of −0
            text = format(number, "f") if abs(number.adjusted()) < _DIGITS else str(number)
            return text.removesuffix(".0")  # in a column with missing values, whole numbers are stored as 3.0
        case date() | time():
            return str(value).removesuffix(" 00:00:00")
    raise BadRowError(f"{key}: expected a single text, number or date, found {shown(value)}: write what is meant")


def special_in(text: str, pattern: str) -> str | None:
    """Returns the first match of a regular expression, in the text or in its NFKC normalisation (as tokenizers may read
    it); None: no match."""
    found = re.search(pattern, text) or re.search(pattern, unicodedata.normalize("NFKC", text))
    return found.group() if found else None


def check_texts(problem: Problem, special: str) -> None:
    """Raises SpecialTokenError when the regular expression ``special`` matches in the question, the label or a choice,
    BadRowError for a text that holds NUL or cannot be written as UTF-8."""
    asked = {"question": problem.question, "answer": problem.label, "choices": "\n".join(problem.choices)}
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
