"""Random questions with a picture and their judged, scored answers, by the same door that a learner's rows take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from bench import models
from bench.scale import at
from masters_ray.kernels.packing import PackedBatch, PromptTensors, pack
from masters_ray.models import hf
from masters_ray.models.chat import Chat
from masters_ray.records import Answer, JudgedAnswer, Picture, Problem, RolloutGroup, ScoredAnswer, TokenScores

TOP_K = 50


@dataclass(frozen=True, kw_only=True)
class Task:
    """How large a group is."""

    text: int = 34
    """Tokens of the prompt besides the picture's."""
    side: int = at(14, 2)
    """The picture is side × side tokens."""
    answers: int = 8
    tokens: int = at(32, 4)
    """Of each answer."""

    @property
    def sequence(self) -> int:
        """Tokens that a packed group takes."""
        return self.text + self.side**2 + self.answers * (self.tokens - 1)


@dataclass(frozen=True, kw_only=True)
class Question:
    """A group with its prompt in both forms: what the processor makes of it, and what the learner packs."""

    group: RolloutGroup
    inputs: dict[str, Tensor]
    prompt: PromptTensors

    @property
    def answers(self) -> list[Tensor]:
        return [torch.tensor(answer.judged.answer.token_ids) for answer in self.group.answers]

    def alone(self) -> list[Question]:
        """The same answers as groups of one, each with the prompt and the picture of its own."""
        return [replace(self, group=replace(self.group, answers=(answer,))) for answer in self.group.answers]


def question(model: Any, task: Task, seed: int = 0) -> Question:
    """A random question for ``model``."""
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    vocabulary = model.config.get_text_config().vocab_size
    inputs = _inputs(task, vocabulary)
    prompt = hf.prompt_tensors(model, cast(Chat, _Ready(inputs)), [], [])
    group = RolloutGroup(
        position=seed,
        stage=0,
        mask_ratio=0.0,
        problem=Problem(id=f"q{seed}", question="", label="", pictures=(Picture(data=b""),)),
        prompt_tokens=len(prompt.input_ids),
        answers=tuple(_answer(random, task.tokens, vocabulary, number) for number in range(task.answers)),
        teacher_digest="",
        student_digest="",
    )
    return Question(group=group, inputs=inputs, prompt=prompt)


def packed(questions: Sequence[Question]) -> PackedBatch:
    """One sequence of these groups."""
    return pack([one.group for one in questions], [one.prompt for one in questions], pad_id=0)


class _Ready:
    """Stands for a Chat: the inputs are there already."""

    def __init__(self, inputs: dict[str, Tensor]) -> None:
        self._inputs = inputs

    def inputs(self, *_: Any) -> dict[str, Tensor]:
        return self._inputs


def _inputs(task: Task, vocabulary: int) -> dict[str, Tensor]:
    """The prompt as a processor gives it: picture, then text."""
    text = torch.randint(models.FIRST_WORD, vocabulary, (task.text - 2,))
    picture = torch.tensor([models.PICTURE_STARTS, *[models.IMAGE] * task.side**2, models.PICTURE_ENDS])
    input_ids = torch.cat([picture, text]).unsqueeze(0)
    return {
        "input_ids": input_ids,
        "attention_mask": torch.ones_like(input_ids),
        "mm_token_type_ids": (input_ids == models.IMAGE).int(),
        "pixel_values": torch.randn(4 * task.side**2, 3 * 2 * models.PATCH**2),
        "image_grid_thw": torch.tensor([[1, 2 * task.side, 2 * task.side]]),
    }


def _answer(random: np.random.Generator, tokens: int, vocabulary: int, number: int) -> ScoredAnswer:
    ids = random.integers(models.FIRST_WORD, vocabulary, tokens)
    ids[-1] = models.END
    reference = random.normal(-np.log(vocabulary), 0.1, tokens)
    return ScoredAnswer(
        judged=JudgedAnswer(
            answer=Answer(
                source="student" if number % 2 else "teacher", text="", token_ids=tuple(ids.tolist()), finish="stop"
            ),
            accuracy=int(number % 3 == 0),
            verdict="",
        ),
        teacher=_scores(random, tokens, vocabulary),
        reference_logprobs=reference.astype(np.float32),
    )


def _scores(random: np.random.Generator, tokens: int, vocabulary: int) -> TokenScores:
    """TOP_K different tokens at each place, with 95 % of the mass between them."""
    spread = random.choice(vocabulary, TOP_K, replace=False)
    ids = (random.integers(0, vocabulary, (tokens, 1)) + spread) % vocabulary
    shares = np.exp(-np.sort(-random.normal(0, 2, (tokens, TOP_K)), axis=-1))
    shares *= 0.95 / shares.sum(-1, keepdims=True)
    return TokenScores(
        top_ids=ids.astype(np.int32),
        top_logprobs=np.log(shares).astype(np.float32),
        left_out=(1 - shares.sum(-1)).astype(np.float32),
    )
