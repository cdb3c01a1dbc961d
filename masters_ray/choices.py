"""The letters of a question's choices, and which of them an answer names, by letter, by text or by both."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence

from masters_ray.wording import normalise, plain

Form = Callable[[str], str]
_OWN = re.compile(r"\(?([A-Za-z])(?:\)|[.:])\s+(\S.*)", re.DOTALL)
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


def lettered(choices: Sequence[str]) -> list[tuple[str, str]]:
    """(letter, text) of each choice: A, B … in their order, unless each brings a letter of its own.

    Example: ``["B. red", "D. blue"]`` gives ``[("B", "red"), ("D", "blue")]``.
    """
    own = [(found[1].upper(), found[2]) for choice in choices if (found := _OWN.fullmatch(choice))]
    if len({letter for letter, _ in own}) == len(choices):
        return own
    return [(chr(ord("A") + index), choice) for index, choice in enumerate(choices)]


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
    for names in (_declared, _begun, _alone):
        for found in names(bare, texts, form):
            return found
    return None


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


def _alone(said: str, texts: Mapping[str, str], _: Form) -> Iterator[str | None]:
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
