"""Packs rollout groups into the learner's tensors: each prompt once, its answers after it.

A batch is one sequence of whole groups, in the order that ``attention`` needs:

    prompt (with its pictures) │ answer 1 │ … │ answer G │ next prompt │ … │ padding

Each answer's positions continue those of its prompt, so hidden states and gradients equal those of G separate
sequences. The last token of an answer is only predicted, so it is not an input.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from masters_ray.kernels.attention import Layout, Span
from masters_ray.records import RolloutGroup


@dataclass(frozen=True, kw_only=True)
class PromptTensors:
    input_ids: Tensor  # [prompt], placeholders expanded
    positions: Tensor  # [axes, prompt]: rotary position of each token; one axis, or three (time, height, width)
    vision: dict[str, Tensor]  # the model's forward arguments for pictures; first axis: patches or pictures


@dataclass(frozen=True, kw_only=True)
class PackedBatch:
    """One packed sequence: B groups with A answers and N answer tokens in all."""

    input_ids: Tensor  # [length]
    positions: Tensor  # [axes, length]
    layout: Layout
    vision: dict[str, Tensor]
    predict_at: Tensor  # [N]: sequence index of the input from which the token is predicted
    targets: Tensor  # [N]: the answer tokens
    answer_of: Tensor  # [N]: 0 … A−1, the answer of each token
    group_of: Tensor  # [A]: 0 … B−1, the group of each answer
    accuracy: Tensor  # float32 [A], R_acc
    reasoning: Tensor  # float32 [A], R_rea; 0 where no judge was asked
    cut: Tensor  # bool [A]: the answer stopped at the length limit
    reference_logprobs: Tensor  # float32 [N]
    behaviour_logprobs: Tensor  # float32 [N], of the student version that wrote the answer; 0 where ``fresh`` is false
    fresh: Tensor  # bool [A]: the answer was written during training, in an online iteration
    top_ids: Tensor  # [N, k], the teacher's most likely tokens
    top_logprobs: Tensor  # float32 [N, k]
    left_out: Tensor  # float32 [N], the teacher's probability mass outside the k tokens

    def to(self, device: torch.device) -> Self:
        return replace(self, **tree_map_only(Tensor, lambda one: one.to(device, non_blocking=True), vars(self)))


def pack(
    groups: Sequence[RolloutGroup], prompts: Sequence[PromptTensors], pad_id: int, multiple_of: int = 1
) -> PackedBatch:
    """Returns one sequence of the groups with their prompts, padded at the end to a multiple of ``multiple_of`` tokens.
    Every answer must have tokens, and all the same number k of teacher log-probabilities per token."""
    input_ids: list[Tensor] = []
    positions: list[Tensor] = []
    predict_at: list[Tensor] = []
    spans: list[Span] = []
    start = 0
    for group, prompt in zip(groups, prompts, strict=True):
        read = [torch.tensor(one.judged.answer.token_ids[:-1], dtype=torch.long) for one in group.answers]
        span = Span(start=start, prompt=len(prompt.input_ids), answers=tuple(map(len, read)))
        spans.append(span)
        input_ids += [prompt.input_ids, *read]
        after = prompt.positions.max() + 1
        positions += [
            prompt.positions,
            *((after + torch.arange(len(one))).expand(len(prompt.positions), -1) for one in read),
        ]
        start = span.answers_start
        for length in span.answers:
            predict_at += [torch.tensor([span.answers_start - 1]), torch.arange(start, start + length)]
            start += length
    padding = -start % multiple_of
    input_ids.append(torch.full((padding,), pad_id))
    positions.append(torch.zeros((len(positions[0]), padding), dtype=torch.long))
    answers = [answer for group in groups for answer in group.answers]
    judged = [answer.judged for answer in answers]
    pictured = {name: None for prompt in prompts for name in prompt.vision}
    behaviour = ((one.behaviour_logprobs, np.zeros_like(one.reference_logprobs)) for one in answers)
    return PackedBatch(
        input_ids=torch.cat(input_ids),
        positions=torch.cat(positions, dim=1),
        layout=Layout(spans=tuple(spans), length=start + padding),
        vision={name: torch.cat([one.vision[name] for one in prompts if name in one.vision]) for name in pictured},
        predict_at=torch.cat(predict_at),
        targets=torch.tensor([token for one in judged for token in one.answer.token_ids]),
        answer_of=torch.repeat_interleave(torch.tensor([len(one.answer.token_ids) for one in judged])),
        group_of=torch.repeat_interleave(torch.tensor([len(group.answers) for group in groups])),
        accuracy=torch.tensor([one.accuracy for one in judged], dtype=torch.float32),
        reasoning=torch.tensor([float(one.reasoning or 0) for one in judged]),
        cut=torch.tensor([one.answer.finish == "length" for one in judged]),
        reference_logprobs=_joined(one.reference_logprobs for one in answers),
        behaviour_logprobs=_joined(nothing if own is None else own for own, nothing in behaviour),
        fresh=torch.tensor([one.behaviour_logprobs is not None for one in answers]),
        top_ids=_joined(one.teacher.top_ids for one in answers).long(),
        top_logprobs=_joined(one.teacher.top_logprobs for one in answers),
        left_out=_joined(one.teacher.left_out for one in answers),
    )


def _joined(arrays: Iterable[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.concatenate(list(arrays)))
