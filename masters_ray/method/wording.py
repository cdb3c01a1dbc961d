"""Short texts in plain words, so that two that say the same are equal."""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Sequence

_EDGES = " \t\r\n.,;:!?\"'`()[]{}*_。、「」『』"
ARTICLES = frozenset({"a", "an", "the"})
_PLAIN = str.maketrans(
    dict.fromkeys("‘’‚‛′", "'") | dict.fromkeys("“”„‟″«»", '"') | dict.fromkeys("‐‑‒–—―−﹣", "-") | {"⁄": "/"}
)
_LAST_WORDS = re.compile(r"<answer>(.*?)</answer>|\\boxed\s*\{((?:[^{}]|\{[^{}]*\})*)\}", re.DOTALL | re.IGNORECASE)
_LATEX = re.compile(
    r"\\(?:text|mathrm|mathbf|textbf|mathit)\s*\{([^{}]*)\}|\\([%$#&])|\\[()\[\],]|^\$(?=.*\$$)|\$$(?<=.\$)"
)
_LETTERED = re.compile(r"\(?([A-Za-z])(?:\)|[.:])\s+(\S.*)", re.DOTALL)
"""A choice with a letter of its own."""


@functools.lru_cache(maxsize=4096)  # labels and short answers come again and again
def plain(text: str) -> str:
    """A text in plain signs: NFKC; quotes, dashes and digits those of ASCII; nothing invisible; no LaTeX around it. Of
    a text with ``<answer>`` tags or ``\\boxed{}`` what the last of them holds.

    Example: ``"so \\boxed{\\text{－５}}"`` gives ``"-5"``.
    """
    plain = unicodedata.normalize("NFKC", text).translate(_PLAIN)
    if not plain.isascii():
        plain = "".join(
            str(unicodedata.digit(one)) if one.isdecimal() else one
            for one in plain
            if unicodedata.category(one) != "Cf"
        )
    *_, last = [None, *_LAST_WORDS.finditer(plain)]
    said = (last[1] or last[2] or "") if last else plain
    return _LATEX.sub(lambda found: found[1] or found[2] or "", said.strip()).strip()


@functools.lru_cache(maxsize=4096)
def normalise(text: str) -> str:
    """``plain``, lower case, single blanks, no punctuation at the edges of a word, no articles (unless nothing else is
    said)."""
    words = [word.strip(_EDGES) for word in plain(text).casefold().split()]
    words = [word for word in words if word]
    kept = [word for word in words if word not in ARTICLES]
    return " ".join(kept or words)


def lettered(choices: Sequence[str]) -> list[tuple[str, str]]:
    """(letter, text) of each choice: A, B … in their order, unless each brings a letter of its own.

    Example: ``["B. red", "D. blue"]`` gives ``[("B", "red"), ("D", "blue")]``.
    """
    own = [(found[1].upper(), found[2]) for choice in choices if (found := _LETTERED.fullmatch(choice))]
    if len({letter for letter, _ in own}) == len(choices):
        return own
    return [(chr(ord("A") + index), choice) for index, choice in enumerate(choices)]
