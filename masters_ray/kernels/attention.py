"""Attention over packed groups: an answer sees only its group's prompt and itself; no group sees another.

A sequence holds groups one after the other, each as

    prompt │ answer 1 │ answer 2 │ … │ answer G

Three kernels give the same result; ``kernel_for`` picks one by device and number format:

* ``blocks``: calls PyTorch's CPU flash kernel for the prompt's causal triangle, for the answers against the prompt and
  for each answer against itself, and joins the results by their log-sum-exp. Computes no pair that the mask forbids.
* ``flex``: PyTorch's FlexAttention with a block mask, on GPUs for which Triton compiles.
* ``dense``: scaled_dot_product_attention with a boolean mask, on any device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from itertools import groupby
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

Kernel = Literal["blocks", "flex", "dense"]


@dataclass(frozen=True, kw_only=True)
class Span:
    """Position and lengths of one group in a sequence, in tokens."""

    start: int
    prompt: int
    answers: tuple[int, ...]
    """Input tokens of each answer: its length − 1, because the last token is only predicted."""

    @property
    def answers_start(self) -> int:
        return self.start + self.prompt

    @property
    def end(self) -> int:
        return self.answers_start + sum(self.answers)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The groups of one sequence, without gaps, followed by padding."""

    spans: tuple[Span, ...]
    length: int
    """Tokens of the sequence, padding included."""
    _masks: dict[tuple[str, torch.device], Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def padding(self) -> int:
        """Padding tokens, after the last group."""
        return self.length - self.spans[-1].end

    @property
    def pairs(self) -> int:
        """(query, key) pairs that the mask allows, padding excluded: the measure of attention's work."""

        def triangle(side: int) -> int:
            return side * (side + 1) // 2

        return sum(
            triangle(span.prompt) + sum(span.answers) * span.prompt + sum(triangle(length) for length in span.answers)
            for span in self.spans
        )

    def dense_mask(self, device: torch.device) -> Tensor:
        """Returns bool [length, length]: row sees column. Padding sees padding: a softmax row must not be empty."""
        if ("dense", device) not in self._masks:
            place = torch.arange(self.length, device=device)
            self._masks["dense", device] = self._sees(device)(place, place, place[:, None], place[None, :])
        return self._masks["dense", device]

    def block_mask(self, device: torch.device) -> Any:
        """Returns ``dense_mask`` as FlexAttention's block mask."""
        if ("flex", device) not in self._masks:
            from torch.nn.attention.flex_attention import create_block_mask

            rule = self._sees(device)
            self._masks["flex", device] = create_block_mask(rule, None, None, self.length, self.length, device=device)
        return self._masks["flex", device]

    def _sees(self, device: torch.device) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
        """Returns the rule of both masks, a function of batch, head, query and key indices."""
        # Per token: its group (padding: −1), and its answer within the group (prompt: −1).
        group, answer = (torch.full((self.length,), -1, dtype=torch.int32) for _ in range(2))
        for index, span in enumerate(self.spans):
            group[span.start : span.end] = index
            lengths = torch.tensor(span.answers)
            answer[span.answers_start : span.end] = torch.arange(len(lengths)).repeat_interleave(lengths)
        group, answer = group.to(device), answer.to(device)

        def sees(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            visible = (answer[key] == -1) | (answer[query] == answer[key])
            return (query >= key) & (group[query] == group[key]) & visible

        return sees


def kernel_for(device: torch.device, dtype: torch.dtype) -> Kernel:
    """Returns the fastest kernel for this device and number format."""
    if device.type == "cpu" and dtype in (torch.float32, torch.float64, torch.bfloat16):
        return "blocks"
    if device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0) and _has_triton():
        return "flex"
    return "dense"


def attend(
    query: Tensor, key: Tensor, value: Tensor, layout: Layout, scale: float, kernel: Kernel | None = None
) -> Tensor:
    """Computes attention over one packed sequence; returns [1, length, heads, width].

    query: [1, heads, length, width]. key, value: [1, key heads, length, width]; heads is a multiple of key heads.
    kernel: default is ``kernel_for`` the query's device and dtype.
    """
    kernel = kernel or kernel_for(query.device, query.dtype)
    if kernel == "blocks":
        return _Blocks.apply(query, key, value, layout, scale)
    if kernel == "flex":
        mixed = _flex(query.is_cuda)(
            query, key, value, block_mask=layout.block_mask(query.device), scale=scale, enable_gqa=True
        )
    else:
        mask = layout.dense_mask(query.device)
        mixed = scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale, enable_gqa=True)
    return mixed.transpose(1, 2)


@cache
def _has_triton() -> bool:
    from torch.utils._triton import has_triton

    return has_triton()


@cache
def _flex(compiled: bool) -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True) if compiled else flex_attention


class _Blocks(torch.autograd.Function):
    """Calls the CPU kernel per block and joins the blocks by their log-sum-exp.

    The kernel's backward is correct for a part of the keys if it gets the output and log-sum-exp over all keys.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, layout: Layout, scale: float) -> Tensor:
        heads, length, width = query.shape[1:]
        shared = heads // key.shape[1]
        mixed = query.new_zeros(1, length, heads, width)
        out = mixed.transpose(1, 2)
        dtype = torch.promote_types(query.dtype, torch.float32)
        total = query.new_full((1, heads, length), -torch.inf, dtype=dtype)
        for queries, keys, causal in _calls(layout):
            k, v = (keys.of(tensor).repeat_interleave(shared, 1) for tensor in (key, value))
            part, part_sum = _KERNEL(queries.of(query), k, v, 0.0, causal, scale=scale)
            before, before_sum = queries.of(out), queries.of(total)
            joint = torch.logaddexp(before_sum, part_sum)
            part *= (part_sum - joint).exp_().unsqueeze(-1)
            part += before * (before_sum - joint).exp_().unsqueeze(-1)
            before.copy_(part)
            before_sum.copy_(joint)
        ctx.save_for_backward(query, key, value, mixed, total)
        ctx.layout, ctx.scale = layout, scale
        return mixed

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        query, key, value, mixed, total = ctx.saved_tensors
        shared = query.shape[1] // key.shape[1]
        given = gradients[0].transpose(1, 2)
        grad_query, grad_key, grad_value = (_zeros_by_token(tensor) for tensor in (query, key, value))
        for queries, keys, causal in _calls(ctx.layout):
            given_here, q, out, sums = map(queries.of, (given, query, mixed.transpose(1, 2), total))
            k, v = (keys.of(tensor).repeat_interleave(shared, 1) for tensor in (key, value))
            grad_q, grad_k, grad_v = _KERNEL_BACKWARD(given_here, q, k, v, out, sums, 0.0, causal, scale=ctx.scale)
            queries.of(grad_query).add_(grad_q)
            keys.of(grad_key).add_(grad_k.unflatten(1, (-1, shared)).sum(2))
            keys.of(grad_value).add_(grad_v.unflatten(1, (-1, shared)).sum(2))
        return grad_query, grad_key, grad_value, None, None


_KERNEL = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_KERNEL_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


@dataclass(frozen=True)
class _Rows:
    """Consecutive stretches of equal length, handled as a batch."""

    start: int
    length: int
    stretches: int = 1

    def of(self, tensor: Tensor) -> Tensor:
        """Returns [1, heads, tokens, …] as a view [stretches, heads, length, …]."""
        part = tensor[0, :, self.start : self.start + self.stretches * self.length]
        return part.unflatten(1, (self.stretches, self.length)).transpose(0, 1)


def _calls(layout: Layout) -> Iterator[tuple[_Rows, _Rows, bool]]:
    """Yields (queries, keys, causal) of each kernel call: a prompt against itself, its answers against the prompt, and
    each answer against itself. Consecutive answers of equal length share a call."""
    for span in layout.spans:
        prompt = _Rows(span.start, span.prompt)
        yield prompt, prompt, True
        start = span.answers_start
        if span.end > start:
            yield _Rows(start, span.end - start), prompt, False
        for length, run in groupby(length for length in span.answers if length):
            answers = _Rows(start, length, len(list(run)))
            yield answers, answers, True
            start += answers.stretches * length


def _zeros_by_token(tensor: Tensor) -> Tensor:
    """Returns zeros [1, heads, length, width], contiguous as [1, length, heads, width]: the layout of projections."""
    return torch.zeros_like(tensor.transpose(1, 2), memory_format=torch.contiguous_format).transpose(1, 2)
