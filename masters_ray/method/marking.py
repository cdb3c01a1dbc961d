"""Rules that mark short answers without a judge (METHOD 4): what a judge is measured against, or stands back for.

They read as benchmarks do, after texts are ``wording.plain``.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence

from masters_ray.config import Rule
from masters_ray.method.wording import ARTICLES, lettered, normalise, plain
from masters_ray.records import Problem

_AROUND_NUMBERS = "$€£¥₹₩ "
_NUMBERS = (
    (r"[-+]?\d{1,3}(?:,\d{2,3})*,\d{3}(?:\.\d*)?", ",", "."),  # 1,234.5 and 12,34,567
    (r"[-+]?\d{1,3}(?:[ '_]\d{3})+(?:\.\d*)?", " '_", "."),  # 1'234.5
    (r"[-+]?\d{1,3}(?:[ '_.]\d{3})+,\d*", " '_.", ","),  # 1 234,5
    (r"[-+]?\d+,\d+", "", ","),  # 12,5
    (r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?", "", "."),  # 12.5e3
)
"""Form of a number, what groups its thousands, and what begins its fraction."""
_VQA_SIGNS = ';/[]"{}()=+\\_-><@`!'
_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_VQA_NUMBERS = {word: str(number) for number, word in enumerate(_DIGITS)} | {"none": "0"}

Form = Callable[[str], str]
"""The form in which two texts are compared."""
_MARKUP = re.compile(r"[*`$\"{}]|(?<!\w)_|_(?!\w)")
_DECLARED = re.compile(
    r"(?:\b(?:answer|option|choice)\s*(?:(?:is|would be)\b|[:=]|(?=\s))|\bi (?:choose|select|pick)\b"
    r"|答案[是为]|答案:|选|정답은|답은|답:|答えは)\s*:?\s*(?:(?:option|choice)\s*)?",
    re.IGNORECASE,
)
_LETTER = re.compile(r"\(?([A-Za-z])(?![A-Za-z0-9_'\u00c0-\u024f])")
_ENDS = re.compile(
    r"\s*(?:$|[.,:;!?)\]\n]|-(?=\s)|(?:because|since)\b|(?:is|was|seems)\s+(?:the\s+)?(?:correct|right|best|answer)\b"
    r"|입니다|です)",
    re.IGNORECASE,
)
_ANOTHER = re.compile(
    r"[.):]?\s*(?:(?:,\s*)?(?:or|and)\b|[/&+|]|,(?=\s*\(?(?-i:[A-Z])\b))\s*\(?[A-Za-z](?![A-Za-z0-9_'\u00c0-\u024f])",
    re.IGNORECASE,
)
_BRACKETED = re.compile(r"(?<!\w)\(([A-Za-z])\)(?!\w)")
_A_LINE = re.compile(r"^[^\w\n]*([A-Z])[^\w\n]*$", re.MULTILINE)
_LINE_BEGINS = re.compile(r"^[^\w\n]*([A-Za-z])(?:[^\w\n]*$|[.):]\s)", re.MULTILINE)
_CLAUSE = re.compile(r"([,.;:](?=\s)|\n|\s(?=because\b))")


def matches(answer: str, label: str) -> bool:
    """Whether both say the same after ``normalise``. An empty answer matches nothing."""
    said, right = normalise(answer), normalise(label)
    if not right:  # a label of punctuation alone stands for itself
        return plain(answer).strip() == plain(label).strip() != ""
    return said == right


def exact(answer: str, problem: Problem) -> bool:
    """``matches`` the label, as a judge by appendix section D says wherever the label is the whole core point."""
    return matches(answer, problem.label)


def relaxed(answer: str, problem: Problem) -> bool:
    """ChartQA's rule: a number may be off by 5 % of the label, anything else must match. "12%" is "0.12" and not "12".

    Looser than benchmarks: signs of currency, a full stop after it, digits in groups ("1,000", "1 000") and decimal
    commas ("12,5") are taken in numbers, and all else is compared as ``matches`` does.
    """
    label, said = _number(problem.label), _number(answer)
    if not label or said is None:
        return matches(answer, problem.label) or (label == said == 0)
    return abs(said - label) / abs(label) <= 0.05


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


RULES: Mapping[Rule, Callable[[str, Problem], bool]]
RULES = {"exact": exact, "relaxed": relaxed, "choice": choice, "vqa": vqa}


def _number(text: str) -> float | None:
    bare = plain(text).rstrip(".").strip()
    percent = bare.endswith("%")
    bare = bare.rstrip("%").strip(_AROUND_NUMBERS)
    for form, groups, fraction in _NUMBERS:
        if re.fullmatch(form, bare):
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


def chosen(said: str, choices: Sequence[str]) -> str | None:
    """The text of the one choice that is named, in the form in which they are compared; None: none, two, or a letter
    that contradicts the text beside it."""
    named = lettered(choices)
    # "Ff" and "ff" are two genotypes, and the same after ``normalise``: the loosest form in which all choices differ.
    form = next((one for one in (normalise, _cased, plain) if len({one(text) for _, text in named}) == len(named)), str)
    texts = {letter: form(text) for letter, text in named}
    whole = form(said)
    if whole in texts.values():
        return whole
    bare = _MARKUP.sub("", plain(said)).strip()
    ways = (_declared(bare, texts, form), _begun(bare, texts, form), _alone(bare, texts))
    return next(itertools.chain(*ways), None)


def _cased(text: str) -> str:
    """Large and small letters and articles as they are."""
    return " ".join(word.rstrip(".,;:!?") for word in plain(text).split())


def _declared(said: str, texts: Mapping[str, str], form: Form) -> Iterator[str | None]:
    """What follows "the answer is", the last one first."""
    for found in reversed(list(_DECLARED.finditer(said))):
        rest = said[found.end() :].strip()
        if (text := form(rest.split("\n")[0])) in texts.values():
            yield text
        yield from _at(rest, texts, form)


def _begun(said: str, texts: Mapping[str, str], form: Form) -> Iterator[str | None]:
    """A letter or a text at the very beginning, unless further choices are listed below."""
    labels = {label.upper() for label in _LINE_BEGINS.findall(said)}
    if len(labels) < 2:
        yield from _at(said, texts, form)
    first, _, rest = _CLAUSE.split(said + "\n", maxsplit=1)
    words = f" {form(rest)} "
    if (text := form(first)) in texts.values():
        others = [other for other in texts.values() if other != text and f" {other} " in words]
        yield None if others else text


def _alone(said: str, texts: Mapping[str, str]) -> Iterator[str | None]:
    """The only letter in brackets or on a line of its own."""
    for form in (_BRACKETED, _A_LINE):
        letters = {letter.upper() for letter in form.findall(said)}
        if letters:
            yield texts.get(letters.pop()) if len(letters) == 1 else None


def _at(said: str, texts: Mapping[str, str], form: Form) -> Iterator[str | None]:
    """The letter that a text begins with, if it is meant as one: nothing follows, or punctuation, or its own text."""
    found = _LETTER.match(said)
    text = texts.get(found[1].upper()) if found else None
    if found is None or text is None:
        return
    rest = said[found.end() :]
    line = form(rest.lstrip(".):").split("\n")[0])
    if _ANOTHER.match(rest) or (line != text and line in texts.values()):
        yield None
    elif _ENDS.match(rest) or line == text or (found[1].isupper() and found[1] not in "AI"):
        yield text
