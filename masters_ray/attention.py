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

from collections.abc import Iterator
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

    def labels(self) -> tuple[Tensor, Tensor]:
        """For each of [length] tokens its group (padding: −1) and its answer within the group (the prompt: −1)."""
        group = torch.full((self.length,), -1, dtype=torch.int32)
        answer = torch.full((self.length,), -1, dtype=torch.int32)
        for index, span in enumerate(self.spans):
            group[span.start : span.end] = index
            start = span.answers_start
            for number, length in enumerate(span.answers):
                answer[start : start + length] = number
                start += length
        return group, answer

    def dense_mask(self, device: torch.device) -> Tensor:
        """bool [length, length]: row sees column. Padding sees itself: no row of a softmax may be empty."""
        if ("dense", device) not in self._masks:
            group, answer = (labels.to(device) for labels in self.labels())
            place = torch.arange(self.length, device=device)
            same_group = group[:, None] == group[None, :]
            visible = (answer[None, :] == -1) | (answer[:, None] == answer[None, :])
            self._masks["dense", device] = (place[:, None] >= place[None, :]) & same_group & visible
        return self._masks["dense", device]

    def block_mask(self, device: torch.device) -> Any:
        """The same as FlexAttention's block mask."""
        if ("flex", device) not in self._masks:
            from torch.nn.attention.flex_attention import create_block_mask

            group, answer = (labels.to(device) for labels in self.labels())

            def sees(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
                visible = (answer[key] == -1) | (answer[query] == answer[key])
                return (query >= key) & (group[query] == group[key]) & visible

            self._masks["flex", device] = create_block_mask(sees, None, None, self.length, self.length, device=device)
        return self._masks["flex", device]


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
    """The CPU kernel's three calls per group.

    The kernel's backward is right for a part of the keys when it is given the output and the log-sum-exp over all of
    them.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, layout: Layout, scale: float) -> Tensor:
        heads, length, width = query.shape[1:]
        mixed = query.new_empty(1, length, heads, width)
        out = mixed.transpose(1, 2)
        total = query.new_empty((1, heads, length), dtype=torch.promote_types(query.dtype, torch.float32))
        if layout.padding:
            out[:, :, -layout.padding :] = 0
        for span in layout.spans:
            prompt = slice(span.start, span.answers_start)
            answers = slice(span.answers_start, span.end)
            _flash(query, key, value, out, total, prompt, prompt, causal=True, scale=scale)
            if span.end == span.answers_start:
                continue
            _flash(query, key, value, out, total, answers, prompt, causal=False, scale=scale)
            for rows in _own_blocks(span):
                k, v = (_for_each_head(rows.of(tensor), heads) for tensor in (key, value))
                own, own_sum = _KERNEL(rows.of(query), k, v, 0.0, True, scale=scale)
                before_sum = rows.of(total)
                joint = torch.logaddexp(before_sum, own_sum)
                own *= (own_sum - joint).exp_().unsqueeze(-1)
                own += rows.of(out) * (before_sum - joint).exp_().unsqueeze(-1)
                rows.put(out, own)
                rows.put(total, joint)
        ctx.save_for_backward(query, key, value, mixed, total)
        ctx.layout, ctx.scale = layout, scale
        return mixed

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        query, key, value, mixed, total = ctx.saved_tensors
        layout, scale = ctx.layout, ctx.scale
        state = (gradients[0].transpose(1, 2), query, key, value, mixed.transpose(1, 2), total)
        grad_query, grad_key, grad_value = (_empty_by_token(tensor) for tensor in (query, key, value))
        if layout.padding:
            for gradient in (grad_query, grad_key, grad_value):
                gradient[:, :, -layout.padding :] = 0
        for span in layout.spans:
            prompt = slice(span.start, span.answers_start)
            answers = slice(span.answers_start, span.end)
            grad_query[:, :, prompt], grad_k, grad_v = _flash_backward(state, prompt, prompt, causal=True, scale=scale)
            if span.end > span.answers_start:
                grad_query[:, :, answers], more_k, more_v = _flash_backward(
                    state, answers, prompt, causal=False, scale=scale
                )
                grad_k += more_k
                grad_v += more_v
                for rows in _own_blocks(span):
                    own_q, own_k, own_v = _own_backward(state, rows, scale)
                    own_q += rows.of(grad_query)
                    rows.put(grad_query, own_q)
                    rows.put(grad_key, own_k)
                    rows.put(grad_value, own_v)
            grad_key[:, :, prompt] = grad_k
            grad_value[:, :, prompt] = grad_v
        return grad_query, grad_key, grad_value, None, None


_KERNEL = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_KERNEL_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def _flash(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    total: Tensor,
    rows: slice,
    columns: slice,
    *,
    causal: bool,
    scale: float,
) -> None:
    """Fill ``rows`` of out and total with attention to ``columns``. No key is repeated in memory: the query heads that
    share a key head lie on the batch axis."""
    q, o, t = (_by_key_head(tensor[:, :, rows], key.shape[1]) for tensor in (query, out, total))
    k, v = (tensor[:, :, columns].expand(q.shape[0], -1, -1, -1) for tensor in (key, value))
    mixed, sums = _KERNEL(q, k, v, 0.0, causal, scale=scale)
    o.copy_(mixed)
    t.copy_(sums)


def _flash_backward(
    state: tuple[Tensor, ...], rows: slice, columns: slice, *, causal: bool, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the queries in ``rows`` and of the keys and values in ``columns``."""
    given, query, key, value, out, total = state
    g, q, o, t = (_by_key_head(tensor[:, :, rows], key.shape[1]) for tensor in (given, query, out, total))
    k, v = (tensor[:, :, columns].expand(q.shape[0], -1, -1, -1) for tensor in (key, value))
    grad_q, grad_k, grad_v = _KERNEL_BACKWARD(g, q, k, v, o, t, 0.0, causal, scale=scale)
    return (
        grad_q.transpose(0, 1).reshape(1, *query.shape[1:2], *grad_q.shape[2:]),
        _add_up(grad_k).unsqueeze(0),
        _add_up(grad_v).unsqueeze(0),
    )


def _own_backward(state: tuple[Tensor, ...], rows: _Rows, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients, in the shape of ``rows.of``, of answers that attend to themselves."""
    given, query, key, value, out, total = state
    k, v = (_for_each_head(rows.of(tensor), query.shape[1]) for tensor in (key, value))
    g, q, o, t = (rows.of(tensor) for tensor in (given, query, out, total))
    grad_q, grad_k, grad_v = _KERNEL_BACKWARD(g, q, k, v, o, t, 0.0, True, scale=scale)
    grad_k, grad_v = (_add_up(part.unflatten(1, (key.shape[1], -1)).movedim(2, 0)) for part in (grad_k, grad_v))
    return grad_q, grad_k, grad_v


def _by_key_head(tensor: Tensor, key_heads: int) -> Tensor:
    """[1, heads, length, …] → a view [heads per key head, key heads, length, …]."""
    return tensor.unflatten(1, (key_heads, -1)).squeeze(0).transpose(0, 1)


def _for_each_head(tensor: Tensor, heads: int) -> Tensor:
    """[answers, key heads, …] → [answers, heads, …]"""
    shared = heads // tensor.shape[1]
    return tensor.unsqueeze(2).expand(-1, -1, shared, -1, -1).flatten(1, 2) if shared > 1 else tensor


def _empty_by_token(tensor: Tensor) -> Tensor:
    """[1, heads, length, width], uninitialised, laid out token by token as projections want it."""
    return torch.empty_like(tensor.transpose(1, 2), memory_format=torch.contiguous_format).transpose(1, 2)


def _add_up(parts: Tensor) -> Tensor:
    """The sum over the first axis, written into its first entry."""
    total = parts[0]
    for part in parts[1:]:
        total += part
    return total


@dataclass(frozen=True)
class _Rows:
    """Answers of one group that are attended in one call, padded at their ends to the longest."""

    start: int
    lengths: tuple[int, ...]

    def of(self, tensor: Tensor) -> Tensor:
        """[1, heads, length, …] → [answers, heads, longest, …]; padding is zero, and without any it is a view."""
        part = tensor[0, :, self.start : self.start + sum(self.lengths)]
        if len(set(self.lengths)) == 1:
            return part.unflatten(1, (len(self.lengths), -1)).transpose(0, 1)
        rows = part.new_zeros(len(self.lengths), part.shape[0], max(self.lengths), *part.shape[2:])
        for row, piece in zip(rows, part.split(self.lengths, 1), strict=True):
            row[:, : piece.shape[1]] = piece
        return rows

    def put(self, tensor: Tensor, rows: Tensor) -> None:
        """The reverse of ``of``, written into ``tensor``."""
        part = tensor[0, :, self.start : self.start + sum(self.lengths)]
        if len(set(self.lengths)) == 1:
            part.unflatten(1, (len(self.lengths), -1)).transpose(0, 1).copy_(rows)
            return
        for row, piece in zip(rows, part.split(self.lengths, 1), strict=True):
            piece.copy_(row[:, : piece.shape[1]])


def _own_blocks(span: Span) -> Iterator[_Rows]:
    """All answers at once, or one by one where padding them would cost too much."""
    lengths = tuple(length for length in span.answers if length)
    if max(lengths) * len(lengths) <= _MOST_PADDING * sum(lengths):
        yield _Rows(span.answers_start, lengths)
        return
    start = span.answers_start
    for length in lengths:
        yield _Rows(start, (length,))
        start += length
