"""Rules of public benchmarks that mark short answers without a judge, or against which one is measured (METHOD 4)."""

import itertools
import math
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache

from rapidfuzz.distance import Levenshtein

from masters_ray.config import Rule
from masters_ray.method.prompts import lettered
from masters_ray.records import Problem

_EDGES = " \t\r\n.,;:!?\"'`()[]{}*_。、「」『』"
ARTICLES = frozenset({"a", "an", "the"})
_PLAIN = str.maketrans(
    dict.fromkeys("‘’‚‛′", "'") | dict.fromkeys("“”„‟″«»", '"') | dict.fromkeys("‐‑‒–—―−﹣", "-") | {"⁄": "/"}
)
_LAST_WORDS = re.compile(r"<answer>(.*?)</answer>|\\boxed\s*\{((?:[^{}]|\{[^{}]*\})*)\}", re.DOTALL | re.IGNORECASE)
_LATEX = re.compile(
    r"\\(?:text|mathrm|mathbf|textbf|mathit)\s*\{([^{}]*)\}|\\([%$#&])|\\[()\[\],]|^\$(?=.*\$$)|\$$(?<=.\$)"
)
_AROUND_NUMBERS = "$€£¥₹₩ "
_NUMBERS = (
    (r"[-+]?\d{1,3}(?:,\d{2,3})*,\d{3}(?:\.\d*)?", ",", "."),  # 1,234.5 and 12,34,567
    (r"[-+]?\d{1,3}(?:[ '_]\d{3})+(?:\.\d*)?", " '_", "."),  # 1'234.5
    (r"[-+]?\d{1,3}(?:[ '_.]\d{3})+,\d*", " '_.", ","),  # 1 234,5
    (r"[-+]?\d+,\d+", "", ","),  # 12,5
    (r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?", "", "."),  # 12.5e3
)
"""(pattern of a number, characters that group its digits, its decimal separator)."""
_VQA_SIGNS = ';/[]"{}()=+\\_-><@`!'
_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_VQA_NUMBERS = {word: str(number) for number, word in enumerate(_DIGITS)} | {"none": "0"}

Form = Callable[[str], str]  # normaliser: two texts are equal when it maps both to the same text
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


@lru_cache(maxsize=4096)
def normalise(text: str) -> str:
    """Returns ``plain`` text in lower case with single blanks, without punctuation at word edges and without articles
    (kept when the text has only articles)."""
    words = [word.strip(_EDGES) for word in plain(text).casefold().split()]
    words = [word for word in words if word]
    kept = [word for word in words if word not in ARTICLES]
    return " ".join(kept or words)


def matches(answer: str, label: str) -> bool:
    """Returns whether both are equal after ``normalise``. An empty answer matches nothing."""
    said, right = normalise(answer), normalise(label)
    if not right:  # a label of punctuation alone is compared as it is
        return plain(answer).strip() == plain(label).strip() != ""
    return said == right


def exact(answer: str, problem: Problem) -> bool:
    """Returns whether the answer ``matches`` the label or a reference; appendix D's judge asks the same if the label
    says it all."""
    return any(matches(answer, one) for one in _right(problem))


def relaxed(answer: str, problem: Problem) -> bool:
    """ChartQA's rule: a number may be off by 5 % of the label, anything else must match. "12%" equals "0.12", not "12".

    Looser than benchmarks: a number may have currency signs, a trailing full stop, grouped digits ("1,000", "1 000")
    and a decimal comma ("12,5"); other texts are compared by ``matches``.
    """
    return any(_near(answer, one) for one in _right(problem))


def _near(answer: str, right: str) -> bool:
    label, said = _number(right), _number(answer)
    if not label or said is None:
        return matches(answer, right) or (label == said == 0)
    return abs(said - label) / abs(label) <= 0.05


def vqa(answer: str, problem: Problem) -> bool:
    """VQA's rule: equal once number words are digits and articles, punctuation and apostrophes are removed. Of several
    references n must be equal with min(n / 3, 1) of at least a half, so two; a single label is enough."""
    said = _vqa_words(answer)
    same = sum(
        said == right if said and right else matches(answer, one)
        for one, right in ((one, _vqa_words(one)) for one in _right(problem))
    )
    return same >= min(2, len(_right(problem)))


def anls(answer: str, problem: Problem) -> bool:
    """DocVQA's rule: ANLS is above 0, so the normalised Levenshtein distance to a reference is below a half, in lower
    case with single blanks."""
    said = " ".join(plain(answer).casefold().split())
    return any(
        Levenshtein.normalized_distance(said, " ".join(plain(one).casefold().split())) < 0.5
        for one in (_right(problem) if said else ())
    )


def choice(answer: str, problem: Problem) -> bool:
    """Accepts the right choice's letter in the forms that benchmarks read ("B", "(b)", "The answer is B.", "B, because
    …"), its text, or both; for a problem without choices the answer must match the label.

    Looser than benchmarks: accepts a choice's text and lower-case letters. Stricter: an answer that names two choices
    ("A or B", "B. red" where B is blue), or none in a form that is read ("Because it is red"), is wrong.
    """
    if not problem.choices:
        return exact(answer, problem)
    label = chosen(problem.label, problem.choices)
    return label is not None and label == chosen(answer, problem.choices)


RULES: dict[Rule, Callable[[str, Problem], bool]] = {
    "exact": exact,
    "relaxed": relaxed,
    "choice": choice,
    "vqa": vqa,
    "anls": anls,
}


def rule_of(problem: Problem, usual: Rule) -> Rule:
    """Returns the rule that marks a problem's answers: its own, otherwise ``usual``."""
    return problem.rule if problem.rule in RULES else usual


def right(answer: str, problem: Problem, usual: Rule) -> bool:
    """Returns whether the problem's rule, otherwise ``usual``, calls an answer right."""
    return RULES[rule_of(problem, usual)](answer, problem)


def _right(problem: Problem) -> tuple[str, ...]:
    return problem.references or (problem.label,)


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
    """Returns the normalised text of the choice that ``said`` names; None when it names none, two, or a letter that
    contradicts the text beside it."""
    named = lettered(choices)
    # The loosest form in which all choices differ: "Ff" and "ff" are two genotypes, but equal after ``normalise``.
    form = next((one for one in (normalise, _cased, plain) if len({one(text) for _, text in named}) == len(named)), str)
    texts = {letter: form(text) for letter, text in named}
    whole = form(said)
    if whole in texts.values():
        return whole
    bare = _MARKUP.sub("", plain(said)).strip()
    ways = (_declared(bare, texts, form), _begun(bare, texts, form), _alone(bare, texts))
    return next(itertools.chain(*ways), None)


def _cased(text: str) -> str:
    """Keeps case and articles; strips punctuation at the end of each word and extra blanks."""
    return " ".join(word.rstrip(".,;:!?") for word in plain(text).split())


def _declared(said: str, texts: Mapping[str, str], form: Form) -> Iterator[str | None]:
    """Yields what follows each "the answer is" or similar phrase, the last first."""
    for found in reversed(list(_DECLARED.finditer(said))):
        rest = said[found.end() :].strip()
        if (text := form(rest.split("\n")[0])) in texts.values():
            yield text
        yield from _at(rest, texts, form)


def _begun(said: str, texts: Mapping[str, str], form: Form) -> Iterator[str | None]:
    """Yields the letter or choice text at the beginning, unless further choices are listed below."""
    labels = {label.upper() for label in _LINE_BEGINS.findall(said)}
    if len(labels) < 2:
        yield from _at(said, texts, form)
    first, _, rest = _CLAUSE.split(said + "\n", maxsplit=1)
    words = f" {form(rest)} "
    if (text := form(first)) in texts.values():
        others = [other for other in texts.values() if other != text and f" {other} " in words]
        yield None if others else text


def _alone(said: str, texts: Mapping[str, str]) -> Iterator[str | None]:
    """Yields the only letter in brackets, then the only letter on a line of its own; None where there are several."""
    for form in (_BRACKETED, _A_LINE):
        letters = {letter.upper() for letter in form.findall(said)}
        if letters:
            yield texts.get(letters.pop()) if len(letters) == 1 else None


def _at(said: str, texts: Mapping[str, str], form: Form) -> Iterator[str | None]:
    """Yields the choice whose letter begins the text, if it is meant as a letter; None if a second choice follows."""
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
