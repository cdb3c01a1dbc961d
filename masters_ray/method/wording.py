"""Normalises short texts, so that two texts that mean the same compare equal."""

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
"""Matches a choice that brings its own letter."""


@functools.lru_cache(maxsize=4096)  # labels and short answers recur
def plain(text: str) -> str:
    """Returns the text in NFKC with ASCII quotes, dashes and digits, without invisible characters and LaTeX markup. If
    the text has ``<answer>`` tags or ``\\boxed{}``, returns the content of the last of them, in that form.

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
    """Returns ``plain`` text in lower case with single blanks, without punctuation at word edges and without articles
    (kept when the text has only articles)."""
    words = [word.strip(_EDGES) for word in plain(text).casefold().split()]
    words = [word for word in words if word]
    kept = [word for word in words if word not in ARTICLES]
    return " ".join(kept or words)


def lettered(choices: Sequence[str]) -> list[tuple[str, str]]:
    """Returns (letter, text) of each choice: A, B, … in order, unless every choice brings a distinct letter of its own.

    Example: ``["B. red", "D. blue"]`` gives ``[("B", "red"), ("D", "blue")]``.
    """
    own = [(found[1].upper(), found[2]) for choice in choices if (found := _LETTERED.fullmatch(choice))]
    if len({letter for letter, _ in own}) == len(choices):
        return own
    return [(chr(ord("A") + index), choice) for index, choice in enumerate(choices)]
