"""Rollout groups → tensors: the prompt once, its G answers after it. The only door from lists to the learner's tensors.

One row of a batch holds one group:

    prompt (with its pictures) │ answer 1 │ answer 2 │ … │ answer G │ padding

Every answer sees the prompt and itself, and its positions go on where the prompt's end, so that hidden states and
gradients are those of G separate sequences. The last token of an answer is only predicted, never read, so it is no
input.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from masters_ray.records import RolloutGroup


@dataclass(frozen=True, kw_only=True)
class PromptTensors:
    """A prompt as the model reads it."""

    input_ids: Tensor
    """[prompt], placeholders expanded"""
    positions: Tensor
    """[axes, prompt]: rotary position of each token; one axis, or three (time, height, width)"""
    vision: dict[str, Tensor]
    """What the model's forward takes for the pictures; first axis: patches or pictures"""


@dataclass(frozen=True, kw_only=True)
class PackedBatch:
    """B groups with A answers and N answer tokens in all."""

    input_ids: Tensor
    """[B, length]"""
    mask: Tensor
    """bool [B, 1, length, length]: row sees column"""
    positions: Tensor
    """[axes, B, length]"""
    vision: dict[str, Tensor]
    predict_at: Tensor
    """[N]: where in the flattened [B · length] the token is predicted from"""
    targets: Tensor
    """[N]: the answer tokens"""
    answer_of: Tensor
    """[N]: 0 … A−1"""
    group_of: Tensor
    """[A]: 0 … B−1, the group of each answer"""
    accuracy: Tensor
    """float32 [A], R_acc"""
    reference_logprobs: Tensor
    """float32 [N]"""
    top_ids: Tensor
    """[N, k], the teacher's most likely tokens"""
    top_logprobs: Tensor
    """float32 [N, k]"""
    left_out: Tensor
    """float32 [N], teacher mass outside the k"""

    def to(self, device: torch.device) -> PackedBatch:
        """The same batch on another device."""
        moved: dict[str, Any] = {}
        for entry in fields(self):
            value = getattr(self, entry.name)
            if isinstance(value, Tensor):
                moved[entry.name] = value.to(device, non_blocking=True)
        vision = {name: value.to(device, non_blocking=True) for name, value in self.vision.items()}
        return replace(self, vision=vision, **moved)


def pack(groups: Sequence[RolloutGroup], prompts: Sequence[PromptTensors], pad_id: int) -> PackedBatch:
    """One batch of these groups, each with its prompt, padded on the right to the longest row."""
    rows = [_row(group, prompt) for group, prompt in zip(groups, prompts, strict=True)]
    length = max(len(row.input_ids) for row in rows)
    axes = prompts[0].positions.shape[0]
    input_ids = torch.full((len(rows), length), pad_id)
    positions = torch.zeros((axes, len(rows), length), dtype=torch.long)
    mask = torch.zeros((len(rows), 1, length, length), dtype=torch.bool)
    mask[:, :, range(length), range(length)] = True  # padding sees itself: no row of the softmax may be empty
    for index, row in enumerate(rows):
        size = len(row.input_ids)
        input_ids[index, :size] = row.input_ids
        positions[:, index, :size] = row.positions
        mask[index, 0, :size, :size] = row.mask
    answers = [answer for group in groups for answer in group.answers]
    tokens = [len(answer.judged.answer.token_ids) for answer in answers]
    k = min(answer.teacher.top_ids.shape[1] for answer in answers)
    widest = max(answer.teacher.top_ids.shape[1] for answer in answers)
    if k != widest:
        raise ValueError(f"groups of one batch hold different numbers of teacher log-probabilities: {k} and {widest}")
    group_sizes = torch.tensor([len(group.answers) for group in groups])
    return PackedBatch(
        input_ids=input_ids,
        mask=mask,
        positions=positions,
        vision={
            name: torch.cat([prompt.vision[name] for prompt in prompts if name in prompt.vision])
            for name in {name: None for prompt in prompts for name in prompt.vision}
        },
        predict_at=torch.cat([row.predict_at + index * length for index, row in enumerate(rows)]),
        targets=torch.tensor([token for answer in answers for token in answer.judged.answer.token_ids]),
        answer_of=torch.repeat_interleave(torch.tensor(tokens)),
        group_of=torch.repeat_interleave(group_sizes),
        accuracy=torch.tensor([float(_accuracy(answer.judged.accuracy)) for answer in answers]),
        reference_logprobs=_join([answer.reference_logprobs for answer in answers]),
        top_ids=_join([answer.teacher.top_ids for answer in answers]).long(),
        top_logprobs=_join([answer.teacher.top_logprobs for answer in answers]),
        left_out=_join([answer.teacher.left_out for answer in answers]),
    )


@dataclass(frozen=True, kw_only=True)
class _Row:
    input_ids: Tensor
    positions: Tensor
    mask: Tensor
    predict_at: Tensor


def _row(group: RolloutGroup, prompt: PromptTensors) -> _Row:
    prompt_length = len(prompt.input_ids)
    answers = [torch.tensor(answer.judged.answer.token_ids) for answer in group.answers]
    length = prompt_length + sum(len(answer) - 1 for answer in answers)
    mask = torch.ones((length, length), dtype=torch.bool).tril()
    input_ids, positions, predict_at = [prompt.input_ids], [prompt.positions], []
    start = prompt_length
    for answer in answers:
        read = len(answer) - 1
        mask[start : start + read, prompt_length:start] = False
        input_ids.append(answer[:-1])
        following = prompt.positions.max() + 1 + torch.arange(read)
        positions.append(following.expand(prompt.positions.shape[0], read))
        predict_at += [torch.tensor([prompt_length - 1]), torch.arange(start, start + read)]
        start += read
    return _Row(
        input_ids=torch.cat(input_ids),
        positions=torch.cat(positions, dim=1),
        mask=mask,
        predict_at=torch.cat(predict_at),
    )


def _join(arrays: Sequence[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.concatenate(arrays))


def _accuracy(accuracy: int | None) -> int:
    if accuracy is None:
        raise ValueError("an unjudged answer has no reward and cannot be trained on")
    return accuracy
