"""What the pair is trained on: questions about pictures, and answers to judge by the prompts of appendix section D."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from examples import easy_vqa
from masters_ray.method import marking, prompts
from masters_ray.method.prompts import Message
from masters_ray.records import Picture, Problem

Random = np.random.Generator
IMAGE_TOKENS = 16
"""Image tokens of a 64 x 64 picture."""
ALL_LABELS = tuple(label for labels in easy_vqa.LABELS.values() for label in labels)
PROMPT_WORDS = sorted({*f"{prompts.EVALUATION.system} {prompts.PARSING.user} {' '.join(ALL_LABELS)}".split()})
COPIED_WORDS = 4
"""How much of an answer an explanation repeats, in words."""


@dataclass(frozen=True)
class Batch:
    """Token ids padded on the right: nothing before the padding attends to it."""

    ids: torch.Tensor
    """(n, length)"""
    targets: torch.Tensor
    """(n, length): the id that follows each position where an answer is to be learned, else -100."""


def render(tokenizer: PreTrainedTokenizerFast, messages: list[Message]) -> str:
    """The prompt as text, ready for the model's turn."""
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))


def expand(text: str) -> str:
    """A prompt with room for the image tokens of one 64 x 64 picture, as the processor makes it."""
    return text.replace("<|image_pad|>", "<|image_pad|>" * IMAGE_TOKENS)


def make_batch(tokenizer: PreTrainedTokenizerFast, pairs: Sequence[tuple[str, str]]) -> Batch:
    """Prompts and answers as one batch; every answer ends with the end-of-turn token."""
    prompts_ids: list[list[int]] = tokenizer([prompt for prompt, _ in pairs])["input_ids"]
    answer_ids: list[list[int]] = tokenizer([answer for _, answer in pairs])["input_ids"]
    ends = [int(tokenizer.eos_token_id)]
    length = max(len(prompt) + len(answer) for prompt, answer in zip(prompts_ids, answer_ids, strict=True))
    ids = torch.full((len(pairs), length), int(tokenizer.pad_token_id))
    targets = torch.full((len(pairs), length), -100)
    for row, (prompt, answer) in enumerate(zip(prompts_ids, answer_ids, strict=True)):
        ids[row, : len(prompt) + len(answer)] = torch.tensor(prompt + answer)
        targets[row, len(prompt) - 1 : len(prompt) + len(answer)] = torch.tensor(answer + ends)
    return Batch(ids, targets)


class QuestionPrompts:
    """The prompts of the package's questions by kind, and by colour or shape where the question names it."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.tokenizer = tokenizer
        self.known: dict[str, str] = {}

    def draw(self, kind: str, labels: np.ndarray, random: Random) -> str:
        """A question of ``kind`` about a picture with these (3,) label positions: its text."""
        shapes = "shape" if labels[1] < 0 else easy_vqa.SHAPES[labels[1]]
        colour = None if labels[0] < 0 else easy_vqa.COLOURS[labels[0]]
        if kind == "colour":
            said = shapes if random.random() < 0.5 else "shape"
            return f"what color is the {said}?" if random.random() < 0.5 else f"what is the color of the {said}?"
        if kind == "shape":
            forms = ["what shape does the image contain?", "what shape is in the image?", "what shape is present?"]
            forms += [f"what is the {colour} shape?"] * (colour is not None)
            return str(random.choice(forms))
        return str(random.choice(easy_vqa.PLACE_QUESTIONS))

    def prompt(self, question: str) -> str:
        """The rendered prompt of a question about one 64 x 64 picture, with its image tokens."""
        if question not in self.known:
            problem = Problem(id="", question=question, label="", pictures=(Picture(data=b""),))
            self.known[question] = expand(render(self.tokenizer, prompts.question_messages(problem)))
        return self.known[question]


@dataclass(frozen=True)
class Triple:
    """An answer to judge."""

    question: str
    label: str
    answer: str

    @property
    def verdict(self) -> int:
        """1 when the exact rule calls the answer right, else 0."""
        return int(marking.matches(self.answer, self.label))

    @property
    def evaluation(self) -> str:
        """The explanation and verdict a judge of the pair learns to give: copying first is what makes it learnable."""
        copied = " ".join(marking.normalise(self.answer).split()[:COPIED_WORDS]) or "nothing"
        return f"Ground truth: {self.label}. Generated: {copied}. <answer>{self.verdict}</answer>"


def _same_kind(label: str, kind: str, random: Random) -> str:
    return str(random.choice([other for other in easy_vqa.LABELS[kind] if other != label]))


def _other_kind(label: str, kind: str, random: Random) -> str:
    return str(random.choice([other for other in ALL_LABELS if other not in easy_vqa.LABELS[kind]]))


def _repeated(label: str, kind: str, random: Random) -> str:
    said = label if random.random() < 0.5 else _same_kind(label, kind, random)
    return " ".join([said] * int(random.integers(2, 7)))


def _near_miss(label: str, kind: str, random: Random) -> str:
    first, second = str(random.choice(ALL_LABELS)), str(random.choice(ALL_LABELS))
    if random.random() < 0.5:
        first = label
    if random.random() < 0.5:
        first, second = second, first
    form = random.integers(0, 5)
    if form == 0:
        return f"{first.split()[0]} {second.split()[-1]}"
    if form == 1:
        return first[: int(random.integers(1, len(first)))] + second[int(random.integers(0, len(second))) :]
    if form == 2:
        return str(random.choice(first.split()))
    if form == 3:
        return f"{first} {second}"
    return " ".join(random.permutation([*first.split(), *second.split()])[:3].tolist())


def _garbage(label: str, kind: str, random: Random) -> str:
    letters = list("abcdefghijklmnopqrstuvwxyz0123456789 ?.<>")
    return "".join(random.choice(letters, size=int(random.integers(1, 9))).tolist())


def _empty(label: str, kind: str, random: Random) -> str:
    return ""


def _variant(label: str, random: Random) -> str:
    forms = [label.capitalize(), label.upper(), f"{label}.", f"the {label}", f" {label}", f"A {label}."]
    return str(random.choice(forms))


def _pieces(label: str, kind: str, random: Random) -> str:
    """Parts of words that models of the pair blurt out: tokens of the judge prompts and the labels, in any order."""
    words = random.choice(PROMPT_WORDS, size=int(random.integers(1, 4)))
    cut = [word[int(random.integers(0, len(word))) :] for word in words]
    return ("" if random.random() < 0.5 else " ").join(cut)


Wrong = Callable[[str, str, Random], str]
WRONG: tuple[tuple[Wrong, float], ...] = (
    (_same_kind, 0.46),
    (_other_kind, 0.12),
    (_repeated, 0.09),
    (_near_miss, 0.16),
    (_pieces, 0.09),
    (_garbage, 0.03),
    (_empty, 0.05),
)
"""Ways of being wrong, with their shares; now and then one of them is right after all, and is judged so."""
VARIANTS = 0.15
"""Share of right answers that are written otherwise than the label."""


def draw_triple(questions: QuestionPrompts, random: Random) -> Triple:
    """A question with its label, and an answer that is right half of the time."""
    labels = np.array([random.integers(0, 8), random.integers(0, 3), random.integers(0, 4)])
    at = int(random.integers(0, 3))
    kind = easy_vqa.KINDS[at]
    label = easy_vqa.LABELS[kind][labels[at]]
    question = questions.draw(kind, labels, random)
    if random.random() < 0.5:
        return Triple(question, label, _variant(label, random) if random.random() < VARIANTS else label)
    wrong = WRONG[int(random.choice(len(WRONG), p=[share for _, share in WRONG]))][0]
    return Triple(question, label, wrong(label, kind, random))


def evaluation_pair(tokenizer: PreTrainedTokenizerFast, triple: Triple) -> tuple[str, str]:
    """The first judge call as (prompt, answer)."""
    messages = prompts.EVALUATION.messages(triple.question, triple.label, triple.answer)
    return render(tokenizer, messages), triple.evaluation


def parsing_pair(tokenizer: PreTrainedTokenizerFast, triple: Triple) -> tuple[str, str]:
    """The second judge call as (prompt, answer)."""
    return render(tokenizer, prompts.PARSING.messages(triple.evaluation)), str(triple.verdict)
