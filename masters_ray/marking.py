"""Rules that mark short answers without a judge (METHOD 4): what a judge is measured against, or stands back for.

They read as benchmarks do, after texts are ``wording.plain``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping

from masters_ray.choices import chosen
from masters_ray.config import Rule
from masters_ray.records import Problem
from masters_ray.wording import ARTICLES, normalise, plain

_AROUND_NUMBERS = "$€£¥₹₩ "
_NUMBERS = (
    # What groups thousands, and what begins the fraction. 1,234.5 and 12,34,567
    (re.compile(r"[-+]?\d{1,3}(?:,\d{2,3})*,\d{3}(?:\.\d*)?"), ",", "."),
    # 1 234,5 and 1'234.5
    (re.compile(r"[-+]?\d{1,3}(?:[ '_]\d{3})+(?:\.\d*)?"), " '_", "."),
    (re.compile(r"[-+]?\d{1,3}(?:[ '_.]\d{3})+,\d*"), " '_.", ","),
    # 12,5 and 12.5e3
    (re.compile(r"[-+]?\d+,\d+"), "", ","),
    (re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"), "", "."),
)
_TOLERANCE = 0.05
_VQA_SIGNS = ';/[]"{}()=+\\_-><@`!'
_VQA_NUMBERS = {
    word: str(number)
    for number, word in enumerate(
        ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    )
} | {"none": "0"}


def matches(answer: str, label: str) -> bool:
    """The exact rule for short labels: both say the same after ``normalise``. An empty answer matches nothing.

    A judge that follows appendix section D agrees with it wherever the label is the whole core point; an answer that
    repeats itself ("red red") is wrong under both.
    """
    said, right = normalise(answer), normalise(label)
    if not right:  # a label of punctuation alone stands for itself
        return plain(answer).strip() == plain(label).strip() != ""
    return bool(said) and said == right


def exact(answer: str, problem: Problem) -> bool:
    """``matches`` the label."""
    return matches(answer, problem.label)


def relaxed(answer: str, problem: Problem) -> bool:
    """ChartQA's rule: a number may be off by 5 % of the label, anything else must match. A percentage is a hundredth of
    its number, so that "12%" is "0.12" and not "12".

    Looser than benchmarks in what is a number: signs of currency, a full stop after it, digits in groups ("1,000",
    "1 000") and decimal commas ("12,5") do not count; and in what matches: as ``matches`` says.
    """
    label, said = _number(problem.label), _number(answer)
    if not label or said is None:
        return matches(answer, problem.label) or (label == said == 0)
    return abs(said - label) / abs(label) <= _TOLERANCE


def vqa(answer: str, problem: Problem) -> bool:
    """VQA's rule: the same after number words are digits, articles, punctuation and apostrophes are gone. The label
    stands for all annotators."""
    said, right = _vqa_words(answer), _vqa_words(problem.label)
    return said == right if said and right else matches(answer, problem.label)


def choice(answer: str, problem: Problem) -> bool:
    """The letter of the right choice in the forms that benchmarks read ("B", "(b)", "The answer is B.", "B, because
    …"), or its text, or both; without choices it must match.

    Looser than benchmarks: the text of a choice, and a small letter. Stricter: an answer that names two choices ("A or
    B", "B. red" where B is blue) or none by its form ("Because it is red") is wrong.
    """
    if not problem.choices:
        return matches(answer, problem.label)
    right = chosen(problem.label, problem.choices)
    return right is not None and right == chosen(answer, problem.choices)


RULES: Mapping[Rule, Callable[[str, Problem], bool]] = {
    "exact": exact,
    "relaxed": relaxed,
    "choice": choice,
    "vqa": vqa,
}


def _number(text: str) -> float | None:
    bare = plain(text).rstrip(".").strip()
    percent = bare.endswith("%")
    bare = bare.rstrip("%").strip(_AROUND_NUMBERS)
    for form, groups, fraction in _NUMBERS:
        if form.fullmatch(bare):
            digits = "".join(one for one in bare if one not in groups).replace(fraction, ".")
            value = float(digits) / (100 if percent else 1)
            return value if math.isfinite(value) else None
    return None


def _vqa_words(text: str) -> list[str]:
    said = re.sub("[,?]", "", plain(text).casefold()).replace("'s", " 's")
    bare = " ".join(said.split())
    for sign in _VQA_SIGNS:
        bare = bare.replace(sign, "" if f"{sign} " in said or f" {sign}" in said else " ")
    bare = re.sub(r"\.(?!\d)|'", "", bare)
    return [_VQA_NUMBERS.get(word, word) for word in bare.split() if word not in ARTICLES]
