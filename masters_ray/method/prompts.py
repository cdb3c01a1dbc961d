"""All prompts: questions, the two judge prompts of appendix D, verbatim, and our own for reasoning (appendix F.3 prints
no prompt) and difficulty (appendix F.1 gives only the scale). Texts of judges are in templates/prompts.yaml."""

import dataclasses
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import yaml

from masters_ray.records import IMAGE, JudgedText, Problem

Message = dict[str, Any]
"""One chat turn: ``{"role": …, "content": …}``, as chat templates take it."""
Asked: TypeAlias = Problem | JudgedText  # from the data or from a store
_SAID = r"overall[\s_-]*summary|explanation"
"""Tags around a judge's own text, whose score tags stay."""
_TAGS = rf"question|ground[\s_-]*truth|generated[\s_-]*text|answer|support|{_SAID}|difficulty"
_OPEN, _CLOSE = r"(?P<open><|&(?:lt|#0*60|#x0*3c);)", r"(?P<close>>|&(?:gt|#0*62|#x0*3e);)"
_TAG = _OPEN + r"(?:[\s/]*(?:{0})[\s/]*|/?(?:{0})[\s/][^<>&]*)" + _CLOSE
_MAY_OPEN = re.compile("[<&\uff1c\ufe64]")
_UNSEEN = frozenset({"Cf", "Cc", "Mn", "Me"})  # zero-width and control characters, combining marks
_PLACE = re.compile(IMAGE.format(r"\d+"))
_LETTERED = re.compile(r"\(?([A-Za-z])(?:\)|[.:])\s+(\S.*)", re.DOTALL)


@dataclasses.dataclass(frozen=True, kw_only=True)
class JudgePrompt:
    """A system turn and a user turn that ask a judge for a score of 0 or 1."""

    system: str
    user: str  # has {} for each text that is inserted
    tag: str | None = None
    """Name of the tag around the score; None: the judge reads its own reply and answers with the score alone."""

    def messages(self, *inserted: str) -> list[Message]:
        tags = _TAGS if self.tag else _SAID
        user = self.user.format(*(defused(text, tags) for text in inserted))
        return [{"role": "system", "content": self.system}, {"role": "user", "content": user}]

    def score(self, said: str) -> int | None:
        """Returns the 0 or 1 in the last pair of tags, or the whole text when ``tag`` is None; None when unreadable."""
        last = said
        if self.tag is not None:
            [*_, last] = ["", *re.findall(rf"(?is)<{self.tag}>((?:(?!<{self.tag}>).)*?)</{self.tag}>", said)]
        return {"0": 0, "1": 1}.get(last.strip())


_TEXTS = yaml.safe_load((Path(__file__).parent / "templates" / "prompts.yaml").read_text(encoding="utf-8"))
EVALUATION = JudgePrompt(**_TEXTS["evaluation"])
"""The Prediction Evaluation Prompt; takes the question ``with_choices``, its ``ground_truth`` and the answer."""
PARSING = JudgePrompt(**_TEXTS["parsing"])
"""The Accuracy Reward Parsing Prompt; takes the judge's reply to EVALUATION."""
REASONING = JudgePrompt(**_TEXTS["reasoning"])
"""Asks whether an answer's reasoning supports its final answer [ours]; takes the question and the answer. It has a tag
of its own, because the judge may quote answer tags from the generated text."""
REASONING_PARSING = JudgePrompt(**_TEXTS["reasoning_parsing"])
"""Parses the judge's reply to REASONING [ours]; takes that reply."""
DIFFICULTY: str = _TEXTS["difficulty"]
"""Follows a question to ask for its difficulty, 1 to 10 [ours]."""


def with_choices(asked: Asked) -> str:
    """Returns the question with its lettered choices below it, one per line. Adds no instruction to answer by letter.

    Example: ``"which?\\nA. red\\nB. blue"``.
    """
    return "\n".join([asked.question, *_lines(asked.choices)])


def ground_truth(asked: Asked) -> str:
    """Returns the label, with its letter if it is one of the choices: ``"B. blue"``."""
    return dict(zip(asked.choices, _lines(asked.choices), strict=True)).get(asked.label, asked.label)


def lettered(choices: Sequence[str]) -> list[tuple[str, str]]:
    """Returns (letter, text) of each choice: A, B, … in order, unless every choice brings a distinct letter of its own.

    Example: ``["B. red", "D. blue"]`` gives ``[("B", "red"), ("D", "blue")]``.
    """
    own = [(found[1].upper(), found[2]) for choice in choices if (found := _LETTERED.fullmatch(choice))]
    if len({letter for letter, _ in own}) == len(choices):
        return own
    return [(chr(ord("A") + index), choice) for index, choice in enumerate(choices)]


def _lines(choices: Sequence[str]) -> list[str]:
    return [f"{letter}. {text}" for letter, text in lettered(choices)]


def defused(text: str, tags: str = _TAGS) -> str:
    """Replaces the brackets of every tag that judge prompts use by blanks, so that an inserted text can neither end its
    section of the prompt nor hold a score. All other characters stay as they are.

    Recognises tags in any case and width, with blanks, invisible characters or attributes in them, and with HTML
    entities as brackets. tags: regular expression of the tag names.

    Example: ``"a < b <Answer>1</Answer>"`` gives ``"a < b  Answer 1 /Answer "``.
    """
    once = _blanked(text, _TAG.format(tags))
    # Removing a tag's brackets can leave a new tag made of the outer brackets; then remove all brackets.
    return once if _blanked(once, _TAG.format(tags)) == once else _blanked(once, f"{_OPEN}|{_CLOSE}")


def _blanked(text: str, pattern: str) -> str:
    """Blanks the pattern's groups ``open`` and ``close``. Matching ignores case, width and invisible characters."""
    if _MAY_OPEN.search(text) is None:
        return text
    letters, places = [], []
    for place, character in enumerate(text):
        for one in unicodedata.normalize("NFKC", character).casefold():
            if one.isspace() or unicodedata.category(one) not in _UNSEEN:
                letters.append(one)
                places.append(place)
    pieces, start = [], 0
    for found in re.finditer(pattern, "".join(letters)):
        for bracket in ("open", "close"):
            if found[bracket] is not None:
                pieces += [text[start : places[found.start(bracket)]], " "]
                start = places[found.end(bracket) - 1] + 1
    return "".join([*pieces, text[start:]])


def question_messages(problem: Problem) -> list[Message]:
    """Returns one user turn: the question ``with_choices`` and its suffix, with ``{"type": "image"}`` in place of each
    IMAGE, or for all pictures before it; without pictures an IMAGE is text."""
    text = "\n".join(filter(None, (with_choices(problem), problem.suffix)))
    pieces = _PLACE.split(text) if problem.pictures else [text]
    if len(pieces) == 1:
        return [
            {"role": "user", "content": [*[{"type": "image"}] * len(problem.pictures), {"type": "text", "text": text}]}
        ]
    content: list[dict[str, str]] = []
    for piece in pieces:
        content += [{"type": "text", "text": piece}, {"type": "image"}] if piece else [{"type": "image"}]
    return [{"role": "user", "content": content[:-1]}]


def difficulty_messages(problem: Problem) -> list[Message]:
    """Returns one user turn that asks how hard a question is, given its pictures and label (appendix F.1)."""
    choices = tuple(map(defused, problem.choices))
    [turn] = question_messages(dataclasses.replace(problem, question=defused(problem.question), choices=choices))
    asked = {"type": "text", "text": DIFFICULTY.format(label=defused(ground_truth(problem)))}
    return [turn | {"content": [*turn["content"], asked]}]


def parse_difficulty(text: str) -> int | None:
    """Returns the number from 1 to 10 in the last difficulty tags, or the whole text's number; None when unreadable."""
    found = re.findall(r"(?i)<difficulty>\s*(10|[1-9])\s*</difficulty>", text)
    bare = found[-1] if found else text.strip()
    return int(bare) if bare.isdecimal() and 1 <= int(bare) <= 10 else None
