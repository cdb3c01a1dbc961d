"""Single values of a row as the texts that people meant by them: numbers, dates, bytes."""

from __future__ import annotations

from datetime import date, datetime, time
from decimal import Decimal
from typing import Any

_SHOWN = 100
"""Characters of a value in a message."""
_DIGITS = 30
"""Numbers of more digits before or after the point keep their exponent."""
_BLANKS = "".join(one for one in map(chr, range(0x3001)) if one.isspace())
_INVISIBLE = "\u200b\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2060\u2066\u2067\u2068\u2069\ufeff"
"""Zero-width spaces and marks of direction: copied along from web pages and spreadsheets."""


class BadRowError(Exception):
    """Why one row cannot be used; becomes a Rejected, never reaches a caller."""


def shown(value: Any) -> str:
    """A value for a message, cut after about 100 characters."""
    return cut(repr(value[: 2 * _SHOWN] if isinstance(value, str | bytes | list | tuple) else value))


def cut(text: str, most: int = _SHOWN) -> str:
    """The text for a message: on one line, of at most so many characters, without any that cannot be written."""
    line = "".join(one if one.isprintable() else "\ufffd" for one in text[:most])
    return line if len(text) <= most else f"{line}…"


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
    if isinstance(value, str):
        return bare(value)
    if isinstance(value, bool):
        raise BadRowError(f"{key}: {value} may stand for yes, for true or for 1: write the text that is meant")
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float | Decimal):
        return _number(value, key)
    if isinstance(value, datetime):
        return value.isoformat(" ").removesuffix(" 00:00:00")
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, list | tuple) and value:
        raise BadRowError(f"{key}: expected a single text, found {len(value)} ({shown(value)}): keep the best of them")
    raise BadRowError(f"{key}: expected a text or a number, found {shown(value)}")


def _number(value: float | Decimal, key: str) -> str:
    number = Decimal(repr(value)) if isinstance(value, float) else value
    if not number.is_finite():
        raise BadRowError(f"{key}: expected a number, found {value}")
    if not number:
        number = abs(number)  # no −0
    text = format(number, "f") if abs(number.adjusted()) < _DIGITS else str(number)
    return text.removesuffix(".0")  # whole numbers of a column that has gaps become 3.0 on the way
