"""Rules that mark short answers without a judge (METHOD 4): what a judge is measured against, or stands back for."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping

from masters_ray.config import Rule
from masters_ray.records import Problem

_EDGES = " \t\r\n.,;:!?\"'`()[]{}*_"
_ARTICLES = frozenset({"a", "an", "the"})
_NUMBER = re.compile(r"[-+]?\d[\d,]*\.?\d*|[-+]?\.\d+")
_AROUND_NUMBERS = "$€£¥% "
_TOLERANCE = 0.05


@functools.lru_cache(maxsize=4096)  # labels and short answers come again and again
def normalise(text: str) -> str:
    """Lower case, single blanks, no punctuation at the edges of a word, no articles (unless nothing else is said)."""
    words = [word.strip(_EDGES) for word in text.lower().split()]
    words = [word for word in words if word]
    kept = [word for word in words if word not in _ARTICLES]
    return " ".join(kept or words)


def matches(answer: str, label: str) -> bool:
    """The exact rule for short labels: both say the same after ``normalise``. An empty answer matches nothing.

    A judge that follows appendix section D agrees with it wherever the label is the whole core point; an answer that
    repeats itself ("red red") is wrong under both.
    """
    said = normalise(answer)
    return bool(said) and said == normalise(label)


def exact(answer: str, problem: Problem) -> bool:
    """``matches`` the label."""
    return matches(answer, problem.label)


def relaxed(answer: str, problem: Problem) -> bool:
    """A number may be off by 5 % of the label, as benchmarks on charts mark it; anything else must match.

    Signs of currency, percent signs and commas between digits do not count: "1,020 $" is right for "1000".
    """
    label, said = _number(problem.label), _number(answer)
    if label is None or said is None:
        return matches(answer, problem.label)
    return abs(said - label) <= _TOLERANCE * abs(label)


def choice(answer: str, problem: Problem) -> bool:
    """The letter or the text of the right choice, or both ("B", "(b)", "B. red"); without choices it must match.

    The label is a letter or a text too.
    """
    right, said = _chosen(problem.label, problem), _chosen(answer, problem)
    if right is None or said is None:
        return matches(answer, problem.label)
    return right == said


RULES: Mapping[Rule, Callable[[str, Problem], bool]] = {"exact": exact, "relaxed": relaxed, "choice": choice}


def _number(text: str) -> float | None:
    bare = text.strip().rstrip(".").strip(_AROUND_NUMBERS)
    return float(bare.replace(",", "")) if _NUMBER.fullmatch(bare) else None


def _chosen(text: str, problem: Problem) -> int | None:
    """Index of the choice that a text names."""
    said = normalise(text)
    texts = [normalise(one) for one in problem.choices]
    if said in texts:
        return texts.index(said)
    letters = [chr(ord("a") + index) for index in range(len(texts))]
    first, _, rest = text.strip().lstrip("([").partition(" ")
    letter = first.strip(_EDGES).lower()
    if letter not in letters:
        return None
    index = letters.index(letter)
    return index if not rest.strip() or normalise(rest) == texts[index] else None
