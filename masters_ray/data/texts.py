"""Texts of people and models that hold what a tokenizer takes for a mark of its own."""

from __future__ import annotations

import re
import unicodedata

from masters_ray.records import Problem

NO_SPECIAL = "(?!)"
"""A regular expression that matches nothing."""


def special_in(text: str, pattern: str) -> str | None:
    """The first special token in a text, as it stands there or as a normalizing tokenizer would read it; None without.

    pattern: a regular expression that matches all of them.
    """
    found = re.search(pattern, text) or (None if text.isascii() else re.search(pattern, _normalized(text)))
    return found.group() if found else None


def reason_against(problem: Problem, pattern: str) -> str | None:
    """Why a problem cannot be asked: the special token in its question, its answer or a choice. None without."""
    texts = [("question", problem.question), ("answer", problem.label)]
    texts += [(f"choice {number}", choice) for number, choice in enumerate(problem.choices, 1)]
    for name, text in texts:
        token = special_in(text, pattern)
        if token is not None:
            return (
                f"{name}: {token!r} is a special token of the teacher's or the student's tokenizer, which texts must "
                "not hold; write it otherwise, or take it out"
            )
    return None


def _normalized(text: str) -> str:
    return unicodedata.normalize("NFKC", text)
