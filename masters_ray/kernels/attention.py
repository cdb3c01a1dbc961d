"""Attention over packed groups (``packing``): every answer sees its group's prompt and itself, and no group sees
another. Three kernels give the same result; ``kernel_for`` picks by what the device can do:

* ``blocks``: the prompt's causal triangle, the answers against the prompt, and each answer against itself are three
  calls of PyTorch's CPU flash kernel, joined by their log-sum-exp. Nothing that the mask forbids is computed.
* ``flex``: PyTorch's FlexAttention with a block mask, on GPUs for which Triton compiles.
* ``dense``: scaled_dot_product_attention with a boolean mask, anywhere.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from itertools import accumulate
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.utils._triton import has_triton

Kernel = Literal["blocks", "flex", "dense"]

_MOST_PADDING = 2.0
"""Answers of one group are attended together, padded to the longest, up to this many times their tokens."""
_KERNEL = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_KERNEL_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


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
    length: int  # tokens of the sequence, padding included
    _masks: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)  # all layers use the same

    @property
    def pairs(self) -> int:
        """(query, key) pairs that have to be computed: the measure of attention's work."""
        triangles = sum(side * (side + 1) // 2 for span in self.spans for side in (span.prompt, *span.answers))
        return triangles + sum(span.prompt * sum(span.answers) for span in self.spans)

    def mask(self, kernel: Literal["flex", "dense"], device: torch.device) -> Any:
        """Returns what each token sees: FlexAttention's block mask, or for ``dense`` bool [length, length], row sees
        column. Padding sees itself: no row of a softmax may be empty."""
        if kernel not in self._masks:
            sees = self._rule(device)
            if kernel == "flex":
                from torch.nn.attention.flex_attention import create_block_mask

                self._masks[kernel] = create_block_mask(sees, None, None, self.length, self.length, device=device)
            else:
                place = torch.arange(self.length, device=device)
                self._masks[kernel] = sees(place, place, place[:, None], place[None, :])
        return self._masks[kernel]

    def _rule(self, device: torch.device) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
        """Returns the rule of both masks, on indices of batch, head, query and key."""
        # Of each token its group (padding: −1), and its answer within the group (the prompt: −1).
        group, answer = (torch.full((self.length,), -1, dtype=torch.int32) for _ in range(2))
        for index, span in enumerate(self.spans):
            group[span.start : span.end] = index
            lengths = torch.tensor(span.answers, dtype=torch.long)
            answer[span.answers_start : span.end] = torch.arange(len(lengths)).repeat_interleave(lengths)
        group, answer = group.to(device), answer.to(device)

        def sees(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            visible = (answer[key] == -1) | (answer[query] == answer[key])
            return (query >= key) & (group[query] == group[key]) & visible

        return sees


def kernel_for(device: torch.device, dtype: torch.dtype) -> Kernel:
    """Returns the fastest kernel that this device and number format can run."""
    if device.type == "cpu" and dtype in (torch.float32, torch.float64, torch.bfloat16):
        return "blocks"
    if device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0) and has_triton():
        return "flex"
    return "dense"


def attend(
    query: Tensor, key: Tensor, value: Tensor, layout: Layout, scale: float, kernel: Kernel | None = None
) -> Tensor:
    """Returns the attention of one packed sequence, [1, length, heads, width].

    query: [1, heads, length, width]; key and value: [1, key heads, length, width], heads a multiple of key heads.
    kernel: default ``kernel_for`` the query.
    """
    kernel = kernel or kernel_for(query.device, query.dtype)
    if kernel == "blocks":
        return _Blocks.apply(query, key, value, layout, scale)
    mask = layout.mask(kernel, query.device)
    if kernel == "flex":
        mixed = _flex(query.is_cuda)(query, key, value, block_mask=mask, scale=scale, enable_gqa=True)
    else:
        mixed = scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale, enable_gqa=True)
    return mixed.transpose(1, 2)


@cache
def _flex(compiled: bool) -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True) if compiled else flex_attention


@dataclass(frozen=True)
class _Rows:
    """Stretches of tokens that follow one another, taken as a batch, padded at their ends to the longest."""

    start: int
    lengths: tuple[int, ...]

    def of(self, tensor: Tensor) -> Tensor:
        """Returns [1, heads, length, …] as [stretches, heads, longest, …], padded with 0; a view if of one length."""
        part = self._part(tensor)
        if len(set(self.lengths)) == 1:
            return part.unflatten(1, (len(self.lengths), -1)).transpose(0, 1)
        rows = part.new_zeros(len(self.lengths), part.shape[0], max(self.lengths), *part.shape[2:])
        for place, row in self.pairs(tensor, rows):
            row.copy_(place)
        return rows

    def pairs(self, tensor: Tensor, rows: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields views of ``tensor``, each with the view of ``rows``, shaped as ``of`` returns, that belongs there."""
        for row, piece in zip(rows, self._part(tensor).split(self.lengths, 1), strict=True):
            yield piece, row[:, : piece.shape[1]]

    def _part(self, tensor: Tensor) -> Tensor:
        return tensor[0, :, self.start : self.start + sum(self.lengths)]


class _Blocks(torch.autograd.Function):
    """Joins the calls of the CPU kernel by their log-sum-exp. The kernel's backward is right for a part of the keys
    when it is given the output and the log-sum-exp over all of them."""

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
            for place, row in (*queries.pairs(out, part), *queries.pairs(total, joint)):
                place.copy_(row)
        ctx.save_for_backward(query, key, value, mixed, total)
        ctx.layout, ctx.scale = layout, scale
        return mixed

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        query, key, value, mixed, total = ctx.saved_tensors
        shared = query.shape[1] // key.shape[1]
        of_queries = (gradients[0].transpose(1, 2), query, mixed.transpose(1, 2), total)
        grad_query, grad_key, grad_value = (  # laid out token by token as projections want it
            torch.zeros_like(tensor.transpose(1, 2), memory_format=torch.contiguous_format).transpose(1, 2)
            for tensor in (query, key, value)
        )
        for queries, keys, causal in _calls(ctx.layout):
            given, q, out, sums = (_shared_first(queries.of(tensor), shared) for tensor in of_queries)
            k, v = (_repeated(keys.of(tensor), shared) for tensor in (key, value))
            grad_q, grad_k, grad_v = _KERNEL_BACKWARD(given, q, k, v, out, sums, 0.0, causal, scale=ctx.scale)
            for place, row in (
                *queries.pairs(grad_query, _shared_last(grad_q, shared)),
                *keys.pairs(grad_key, _added_up(grad_k, shared)),
                *keys.pairs(grad_value, _added_up(grad_v, shared)),
            ):
                place.add_(row)
        return grad_query, grad_key, grad_value, None, None


def _calls(layout: Layout) -> Iterator[tuple[_Rows, _Rows, bool]]:
    """Yields (queries, keys, whether causal) of each call. Answers go together unless padding would cost too much."""
    for span in layout.spans:
        prompt, lengths = _Rows(span.start, (span.prompt,)), tuple(length for length in span.answers if length)
        yield prompt, prompt, True
        if not lengths:
            continue
        yield _Rows(span.answers_start, (sum(lengths),)), prompt, False
        if max(lengths) * len(lengths) <= _MOST_PADDING * sum(lengths):
            answers = [_Rows(span.answers_start, lengths)]
        else:
            starts = accumulate(lengths, initial=span.answers_start)
            answers = [_Rows(start, (length,)) for start, length in zip(starts, lengths, strict=False)]
        yield from ((one, one, True) for one in answers)


# Query heads that share a key head lie on the batch axis, so that no key is repeated in memory for a single stretch.


def _shared_first(rows: Tensor, shared: int) -> Tensor:
    """[rows, heads, …] → [shared · rows, key heads, …]"""
    return rows.unflatten(1, (-1, shared)).movedim(2, 0).flatten(0, 1)


def _shared_last(rows: Tensor, shared: int) -> Tensor:
    """Inverts ``_shared_first``."""
    return rows.unflatten(0, (shared, -1)).movedim(0, 2).flatten(1, 2)


def _repeated(rows: Tensor, shared: int) -> Tensor:
    """[rows, key heads, …] → [shared · rows, key heads, …]"""
    return rows.expand(shared, *rows.shape).flatten(0, 1)


def _added_up(rows: Tensor, shared: int) -> Tensor:
    """Sums over what ``_repeated`` gave, in place."""
    total, *others = rows.unflatten(0, (shared, -1))
    for other in others:
        total += other
    return total
