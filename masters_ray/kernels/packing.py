"""Packs rollout groups into the learner's tensors, in one of two layouts.

``pack``: a batch is one sequence of whole groups, each prompt once, in the order that ``attention`` needs:

    prompt (with its pictures) │ answer 1 │ … │ answer G │ next prompt │ … │ padding

Each answer's positions continue those of its prompt, so hidden states and gradients equal those of G separate
sequences. ``pack_rows``: those separate sequences themselves, rows of a batch that are padded at their ends, for models
whose layers do more than attend to earlier tokens (recurrences, windows, pictures that see themselves both ways).

The last token of an answer is only predicted, so it is not an input.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence
from torch.utils._pytree import tree_map_only

from masters_ray.kernels.attention import Layout, Span
from masters_ray.records import RolloutGroup


@dataclass(frozen=True, kw_only=True)
class PromptTensors:
    input_ids: Tensor  # [prompt], placeholders expanded
    positions: Tensor  # [axes, prompt]: rotary position of each token; one axis, or three (time, height, width)
    vision: dict[str, Tensor]  # the model's forward arguments for pictures; first axis: patches or pictures
    per_token: dict[str, Tensor] = field(default_factory=dict)
    """[prompt] each: the model's further arguments with a number per token; tokens of answers have 0."""


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Answers as rows of a batch, each after its own prompt."""

    lengths: tuple[int, ...]  # tokens of each row, padding excluded

    @property
    def length(self) -> int:
        """Tokens of the batch, padding included."""
        return len(self.lengths) * max(self.lengths)

    @property
    def pairs(self) -> int:
        """(query, key) pairs of causal attention."""
        return sum(length * (length + 1) // 2 for length in self.lengths)


@dataclass(frozen=True, kw_only=True)
class PackedBatch:
    """B groups with A answers and N answer tokens in all."""

    input_ids: Tensor  # [length]; as rows [A, longest]
    positions: Tensor  # [axes, length]; as rows [axes, A, longest]
    layout: Layout | Rows
    vision: dict[str, Tensor]
    per_token: dict[str, Tensor]  # as rows: [A, longest] each, with the attention mask; otherwise empty
    predict_at: Tensor  # [N]: index (of the flattened rows) of the input from which the token is predicted
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
    groups: Sequence[RolloutGroup],
    prompts: Sequence[PromptTensors],
    pad_id: int,
    multiple_of: int = 1,
    padded: Sequence[str] = (),
) -> PackedBatch:
    """Returns one sequence of the groups with their prompts, padded at the end to a multiple of ``multiple_of`` tokens.
    Every answer must have tokens, and all the same number k of teacher log-probabilities per token. prompts: one for
    each group, then some that have no answers. padded: inputs of the vision tower whose second axis is filled up with
    zeros where prompts differ in it."""
    input_ids: list[Tensor] = []
    positions: list[Tensor] = []
    predict_at: list[Tensor] = []
    spans: list[Span] = []
    start = 0
    for prompt, read in _reads(groups, prompts):
        span = Span(start=start, prompt=len(prompt.input_ids), answers=tuple(map(len, read)))
        spans.append(span)
        input_ids += [prompt.input_ids, *read]
        positions += [prompt.positions, *(_following(prompt, one) for one in read)]
        start = span.answers_start
        for length in span.answers:
            predict_at += [torch.tensor([span.answers_start - 1]), torch.arange(start, start + length)]
            start += length
    padding = -start % multiple_of
    input_ids.append(torch.full((padding,), pad_id))
    positions.append(torch.zeros((len(positions[0]), padding), dtype=torch.long))
    return PackedBatch(
        input_ids=torch.cat(input_ids),
        positions=torch.cat(positions, dim=1),
        layout=Layout(spans=tuple(spans), length=start + padding),
        vision=_vision(prompts, padded),
        per_token={},
        predict_at=torch.cat(predict_at),
        **_of_answers(groups),
    )


def pack_rows(
    groups: Sequence[RolloutGroup], prompts: Sequence[PromptTensors], pad_id: int, padded: Sequence[str] = ()
) -> PackedBatch:
    """Returns the groups' answers as rows, each after its own prompt and pictures. Arguments as for ``pack``."""
    of_rows = [(prompt, read) for prompt, own in _reads(groups, prompts) for read in own]
    answers = len(of_rows)
    of_rows += [(prompt, torch.empty(0, dtype=torch.long)) for prompt in prompts[len(groups) :]]
    lengths = tuple(len(prompt.input_ids) + len(read) for prompt, read in of_rows)
    longest = max(lengths)
    starts = [row * longest + len(prompt.input_ids) - 1 for row, (prompt, _) in enumerate(of_rows)]
    positions = [torch.cat([prompt.positions, _following(prompt, read)], 1).T for prompt, read in of_rows]
    per_token = {
        name: pad_sequence([pad(prompt.per_token[name], (0, len(read))) for prompt, read in of_rows], True)
        for name in prompts[0].per_token
    }
    sees = pad_sequence([torch.ones(length, dtype=torch.long) for length in lengths], True)
    return PackedBatch(
        input_ids=pad_sequence([torch.cat([prompt.input_ids, read]) for prompt, read in of_rows], True, pad_id),
        positions=pad_sequence(positions, True).movedim(2, 0),
        layout=Rows(lengths=lengths),
        vision=_vision([prompt for prompt, _ in of_rows], padded),
        per_token={"attention_mask": sees, **per_token},
        predict_at=torch.cat(
            [at + torch.arange(len(read) + 1) for at, (_, read) in zip(starts, of_rows[:answers], strict=False)]
        ),
        **_of_answers(groups),
    )


def _reads(
    groups: Sequence[RolloutGroup], prompts: Sequence[PromptTensors]
) -> Iterator[tuple[PromptTensors, list[Tensor]]]:
    """Yields each prompt with the tokens of its answers that are inputs: all but the last."""
    for group, prompt in zip_longest(groups, prompts):
        answers = group.answers if group else ()
        yield prompt, [torch.tensor(one.judged.answer.token_ids[:-1], dtype=torch.long) for one in answers]


def _following(prompt: PromptTensors, read: Tensor) -> Tensor:
    """Returns the positions of an answer's tokens, [axes, tokens]."""
    return (prompt.positions.max() + 1 + torch.arange(len(read))).expand(len(prompt.positions), -1)


def _vision(prompts: Sequence[PromptTensors], padded: Sequence[str]) -> dict[str, Tensor]:
    """Joins the prompts' pictures along the first axis."""
    found = {}
    for name in {name: None for prompt in prompts for name in prompt.vision}:
        of_prompts = [one.vision[name] for one in prompts if name in one.vision]
        if name in padded:
            most = max(one.shape[1] for one in of_prompts)
            of_prompts = [pad(one, (0, 0) * (one.ndim - 2) + (0, most - one.shape[1])) for one in of_prompts]
        found[name] = torch.cat(of_prompts)
    return found


def _of_answers(groups: Sequence[RolloutGroup]) -> dict[str, Any]:
    """Returns the fields of a PackedBatch that do not depend on the layout."""
    answers = [answer for group in groups for answer in group.answers]
    judged = [answer.judged for answer in answers]
    behaviour = ((one.behaviour_logprobs, np.zeros_like(one.reference_logprobs)) for one in answers)
    return {
        "targets": torch.tensor([token for one in judged for token in one.answer.token_ids]),
        "answer_of": torch.repeat_interleave(torch.tensor([len(one.answer.token_ids) for one in judged])),
        "group_of": torch.repeat_interleave(torch.tensor([len(group.answers) for group in groups])),
        "accuracy": torch.tensor([one.accuracy for one in judged], dtype=torch.float32),
        "reasoning": torch.tensor([float(one.reasoning or 0) for one in judged]),
        "cut": torch.tensor([one.answer.finish == "length" for one in judged]),
        "reference_logprobs": _joined(one.reference_logprobs for one in answers),
        "behaviour_logprobs": _joined(nothing if own is None else own for own, nothing in behaviour),
        "fresh": torch.tensor([one.behaviour_logprobs is not None for one in answers]),
        "top_ids": _joined(one.teacher.top_ids for one in answers).long(),
        "top_logprobs": _joined(one.teacher.top_logprobs for one in answers),
        "left_out": _joined(one.teacher.left_out for one in answers),
    }


def _joined(arrays: Iterable[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.concatenate(list(arrays)))
