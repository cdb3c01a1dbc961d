"""Attention over packed groups: every answer sees its group's prompt and itself, and no group sees another.

A sequence holds groups one after the other, each as

    prompt │ answer 1 │ answer 2 │ … │ answer G

Three kernels give the same result; ``kernel_for`` picks by what the device can do:

* ``blocks``: the prompt's causal triangle, the answers against the prompt, and each answer against itself are three
  calls of PyTorch's CPU flash kernel, joined by their log-sum-exp. Nothing that the mask forbids is computed.
* ``flex``: PyTorch's FlexAttention with a block mask, on GPUs for which Triton compiles.
* ``dense``: scaled_dot_product_attention with a boolean mask, anywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

Kernel = Literal["blocks", "flex", "dense"]

_MOST_PADDING = 2.0
"""Answers of one group are attended together, padded to the longest, up to this many times their tokens."""


@dataclass(frozen=True, kw_only=True)
class Span:
    """Where one group stands in a sequence, in tokens."""

    start: int
    prompt: int
    answers: tuple[int, ...]
    """Tokens read of each answer; an answer's last token is only predicted, so one of a single token reads none."""

    @property
    def answers_start(self) -> int:
        return self.start + self.prompt

    @property
    def end(self) -> int:
        return self.answers_start + sum(self.answers)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The groups of one sequence, without gaps; what stands behind the last is padding."""

    spans: tuple[Span, ...]
    length: int
    """Tokens of the sequence, padding included."""
    _masks: dict[tuple[str, torch.device], Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def padding(self) -> int:
        """Tokens behind the last group."""
        return self.length - self.spans[-1].end

    @property
    def pairs(self) -> int:
        """(query, key) pairs that have to be computed: the measure of attention's work."""

        def triangle(side: int) -> int:
            return side * (side + 1) // 2

        return sum(
            triangle(span.prompt) + sum(span.answers) * span.prompt + sum(triangle(length) for length in span.answers)
            for span in self.spans
        )

    def dense_mask(self, device: torch.device) -> Tensor:
        """bool [length, length]: row sees column. Padding sees itself: no row of a softmax may be empty."""
        if ("dense", device) not in self._masks:
            place = torch.arange(self.length, device=device)
            self._masks["dense", device] = self._sees(device)(place, place, place[:, None], place[None, :])
        return self._masks["dense", device]

    def block_mask(self, device: torch.device) -> Any:
        """The same as FlexAttention's block mask."""
        if ("flex", device) not in self._masks:
            from torch.nn.attention.flex_attention import create_block_mask

            rule = self._sees(device)
            self._masks["flex", device] = create_block_mask(rule, None, None, self.length, self.length, device=device)
        return self._masks["flex", device]

    def _sees(self, device: torch.device) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
        """The rule of both masks, on indices of batch, head, query and key."""
        # Of each token its group (padding: −1), and its answer within the group (the prompt: −1).
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
    """The fastest kernel that this device and number format can run."""
    if device.type == "cpu" and dtype in (torch.float32, torch.float64, torch.bfloat16):
        return "blocks"
    if device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0) and _has_triton():
        return "flex"
    return "dense"


def attend(
    query: Tensor, key: Tensor, value: Tensor, layout: Layout, scale: float, kernel: Kernel | None = None
) -> Tensor:
    """Attention of one packed sequence.

    query: [1, heads, length, width]; key and value: [1, key heads, length, width], heads a multiple of key heads.
    Returns [1, length, heads, width]. kernel: default ``kernel_for`` the query.
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
    """The calls of the CPU kernel, joined by their log-sum-exp.

    The kernel's backward is right for a part of the keys when it is given the output and the log-sum-exp over all of
    them.
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
            q = _shared_first(queries.of(query), shared)
            k, v = (_repeated(keys.of(tensor), shared) for tensor in (key, value))
            found = _KERNEL(q, k, v, 0.0, causal, scale=scale)
            part, part_sum = (_shared_last(tensor, shared) for tensor in found)
            before_sum = queries.of(total)
            joint = torch.logaddexp(before_sum, part_sum)
            part *= (part_sum - joint).exp_().unsqueeze(-1)
            part += queries.of(out) * (before_sum - joint).exp_().unsqueeze(-1)
            queries.put(out, part)
            queries.put(total, joint)
        ctx.save_for_backward(query, key, value, mixed, total)
        ctx.layout, ctx.scale = layout, scale
        return mixed

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        query, key, value, mixed, total = ctx.saved_tensors
        shared = query.shape[1] // key.shape[1]
        of_queries = (gradients[0].transpose(1, 2), query, mixed.transpose(1, 2), total)
        grad_query, grad_key, grad_value = (_zeros_by_token(tensor) for tensor in (query, key, value))
        for queries, keys, causal in _calls(ctx.layout):
            given, q, out, sums = (_shared_first(queries.of(tensor), shared) for tensor in of_queries)
            k, v = (_repeated(keys.of(tensor), shared) for tensor in (key, value))
            grad_q, grad_k, grad_v = _KERNEL_BACKWARD(given, q, k, v, out, sums, 0.0, causal, scale=ctx.scale)
            queries.add(grad_query, _shared_last(grad_q, shared))
            keys.add(grad_key, _added_up(grad_k, shared))
            keys.add(grad_value, _added_up(grad_v, shared))
        return grad_query, grad_key, grad_value, None, None


_KERNEL = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_KERNEL_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


@dataclass(frozen=True)
class _Rows:
    """Stretches of tokens that follow one another, taken as a batch, padded at their ends to the longest."""

    start: int
    lengths: tuple[int, ...]

    def of(self, tensor: Tensor) -> Tensor:
        """[1, heads, length, …] → [stretches, heads, longest, …]; padding is zero, and without any it is a view."""
        if len(set(self.lengths)) == 1:
            return self._batch(tensor)
        part = self._part(tensor)
        rows = part.new_zeros(len(self.lengths), part.shape[0], max(self.lengths), *part.shape[2:])
        for row, piece in zip(rows, part.split(self.lengths, 1), strict=True):
            row[:, : piece.shape[1]] = piece
        return rows

    def put(self, tensor: Tensor, rows: Tensor) -> None:
        """The reverse of ``of``, written into ``tensor``."""
        for place, row in self._places(tensor, rows):
            place.copy_(row)

    def add(self, tensor: Tensor, rows: Tensor) -> None:
        """The same, added to what is there."""
        for place, row in self._places(tensor, rows):
            place.add_(row)

    def _places(self, tensor: Tensor, rows: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """(view of ``tensor``, what belongs there)"""
        if len(set(self.lengths)) == 1:
            yield self._batch(tensor), rows
            return
        for row, piece in zip(rows, self._part(tensor).split(self.lengths, 1), strict=True):
            yield piece, row[:, : piece.shape[1]]

    def _part(self, tensor: Tensor) -> Tensor:
        return tensor[0, :, self.start : self.start + sum(self.lengths)]

    def _batch(self, tensor: Tensor) -> Tensor:
        return self._part(tensor).unflatten(1, (len(self.lengths), -1)).transpose(0, 1)


def _calls(layout: Layout) -> Iterator[tuple[_Rows, _Rows, bool]]:
    """(queries, keys, whether a query sees only the keys up to its place) of each call: every prompt against itself,
    its answers against it, and each answer against itself. Answers go together unless padding them would cost too
    much."""
    for span in layout.spans:
        prompt, lengths = _Rows(span.start, (span.prompt,)), tuple(length for length in span.answers if length)
        yield prompt, prompt, True
        if not lengths:
            continue
        yield _Rows(span.answers_start, (sum(lengths),)), prompt, False
        if max(lengths) * len(lengths) <= _MOST_PADDING * sum(lengths):
            together = _Rows(span.answers_start, lengths)
            yield together, together, True
            continue
        start = span.answers_start
        for length in lengths:
            alone = _Rows(start, (length,))
            yield alone, alone, True
            start += length


# Query heads that share a key head lie on the batch axis, so that no key is repeated in memory for a single stretch.


def _shared_first(rows: Tensor, shared: int) -> Tensor:
    """[rows, heads, …] → [shared · rows, key heads, …]"""
    return rows.unflatten(1, (-1, shared)).movedim(2, 0).flatten(0, 1)


def _shared_last(rows: Tensor, shared: int) -> Tensor:
    """The reverse."""
    return rows.unflatten(0, (shared, -1)).movedim(0, 2).flatten(1, 2)


def _repeated(rows: Tensor, shared: int) -> Tensor:
    """[rows, key heads, …] → [shared · rows, key heads, …]"""
    return rows.expand(shared, *rows.shape).flatten(0, 1)


def _added_up(rows: Tensor, shared: int) -> Tensor:
    """The sum over what ``_repeated`` gave, in place."""
    total, *others = rows.unflatten(0, (shared, -1))
    for other in others:
        total += other
    return total


def _zeros_by_token(tensor: Tensor) -> Tensor:
    """[1, heads, length, width], laid out token by token as projections want it."""
    return torch.zeros_like(tensor.transpose(1, 2), memory_format=torch.contiguous_format).transpose(1, 2)
