"""From hidden states to the few numbers that a step needs of each answer token, without the logits in memory.

The output head and everything behind it run over tiles of tokens × vocabulary. A tile of logits lives in one buffer
that is turned in place into probabilities on the way there and into gradients on the way back, so the most that is ever
held of answers × tokens × vocabulary is one tile. If all logits fit, they are one tile that waits for the gradient;
otherwise every tile is computed again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from masters_ray.method.divergence import jsd_and_slope, left_out_error, with_rest

_CPU_TILE_BYTES = 4 * 2**20
"""What stays in a core's cache while a tile is worked on."""
_LEAST_COLUMNS = 2048
"""Columns of a tile, if the vocabulary has them: narrower ones waste the matrix unit."""


def answer_terms(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    top_ids: Tensor,
    top_logprobs: Tensor,
    left_out: Tensor,
    *,
    logits_bytes: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """(log-probability of each target, JSD to the stored teacher scores, most that what they leave out can add to it;
    both in nats), float32 [tokens] each.

    hidden: [tokens, width], the states that predict the targets; weight: [vocabulary, width] and bias: [vocabulary]
    or None, the output head; targets: [tokens]; top_ids and top_logprobs: [tokens, k] and left_out: [tokens], as in
    ``divergence.top_k_jsd``, which this equals. logits_bytes: most bytes of float32 logits held at a time.
    The first two are differentiable in hidden, weight and bias, once.

    A top id that the head has no row for (its vocabulary is padded less widely than the teacher's) counts as left out.
    A target without a row has no log-probability: NaN.
    """
    probabilities = top_logprobs.exp()
    lacking = probabilities * (top_ids >= weight.shape[0])
    left_out = left_out + lacking.sum(-1)
    return _AnswerTerms.apply(hidden, weight, bias, targets, top_ids, probabilities - lacking, left_out, logits_bytes)


class _AnswerTerms(torch.autograd.Function):
    """The first two outputs have a derivative by the logits z that needs few numbers per token:

    ∂ log p_y / ∂z_v = [v = y] − p_v
    ∂ JSD / ∂z_v = p_v · (c_v − c̄), c_v = ½ ln(q_v / m_v) for v among the top k, c_rest for all others, c̄ = Σ p_v c_v
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        top_ids: Tensor,
        top_probabilities: Tensor,
        left_out: Tensor,
        logits_bytes: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        tokens, vocabulary = hidden.shape[0], weight.shape[0]
        tiles = _tiles(tokens, vocabulary, logits_bytes, hidden.device)
        wanted = torch.cat([top_ids, targets.unsqueeze(-1)], -1)
        chosen = torch.full(wanted.shape, torch.nan, device=hidden.device)
        highest = torch.full((tokens, 1), -torch.inf, device=hidden.device)
        total = torch.zeros_like(highest)
        logits = highest
        for columns in tiles[1]:
            for rows in tiles[0]:
                logits = _logits(hidden[rows], weight, bias, columns)
                _gather(logits, wanted[rows], columns, into=chosen[rows])
                top = torch.maximum(highest[rows], logits.amax(-1, keepdim=True))
                total[rows] *= (highest[rows] - top).exp_()
                total[rows] += logits.sub_(top).exp_().sum(-1, keepdim=True)
                highest[rows] = top
        log_total = highest + total.log()
        chosen -= log_total
        student = with_rest(chosen[:, :-1].exp().masked_fill(top_ids >= vocabulary, 0.0))
        divergence, slope = jsd_and_slope(with_rest(top_probabilities, left_out), student)
        ctx.save_for_backward(hidden, weight, bias, wanted, log_total, student, slope)
        ctx.tiles = tiles
        ctx.kept = logits.div_(total) if list(map(len, tiles)) == [1, 1] else None
        error = left_out_error(left_out, student[:, -1])
        ctx.mark_non_differentiable(error)
        return chosen[:, -1].contiguous(), divergence, error

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        hidden, weight, bias, wanted, log_total, student, slope = ctx.saved_tensors
        for_logprobs, for_divergence = (gradient.unsqueeze(-1) for gradient in gradients[:2])
        mean_slope = (student * slope).sum(-1, keepdim=True)
        everywhere = for_divergence * (slope[:, -1:] - mean_slope) - for_logprobs
        at_top = (for_divergence * (slope[:, :-1] - mean_slope) - for_logprobs) * student[:, :-1]
        _, needs_weight, needs_bias, *_ = ctx.needs_input_grad
        grad_hidden = torch.zeros_like(hidden, dtype=torch.float32)
        grad_weight = torch.zeros_like(weight) if needs_weight else None
        grad_bias = torch.zeros(len(weight), device=hidden.device) if needs_bias else None
        for columns in ctx.tiles[1]:
            here = None if grad_weight is None else grad_weight[columns].float()  # float32: the gradient itself
            for rows in ctx.tiles[0]:
                if ctx.kept is not None:
                    slopes, ctx.kept = ctx.kept, None
                else:
                    slopes = _logits(hidden[rows], weight, bias, columns).sub_(log_total[rows]).exp_()
                slopes *= everywhere[rows]
                _scatter(slopes, wanted[rows], columns, at_top[rows], for_logprobs[rows])
                if grad_bias is not None:
                    grad_bias[columns] += slopes.sum(0)
                slopes = slopes.to(weight.dtype)
                _add_product(grad_hidden[rows], slopes, weight[columns])
                if here is not None:
                    _add_product(here, slopes.T, hidden[rows])
            if grad_weight is not None and here is not None and here.dtype != grad_weight.dtype:
                grad_weight[columns] = here
        grad_bias = None if grad_bias is None else grad_bias.to(bias.dtype)
        return grad_hidden.to(hidden.dtype), grad_weight, grad_bias, None, None, None, None, None


def _tiles(tokens: int, vocabulary: int, logits_bytes: int, device: torch.device) -> tuple[list[slice], list[slice]]:
    """How tokens × vocabulary is cut: (slices of the tokens, slices of the vocabulary)."""
    cells, rows, columns = logits_bytes // 4, tokens, vocabulary
    if tokens * vocabulary > cells:
        cells = min(cells, _CPU_TILE_BYTES // 4) if device.type == "cpu" else cells
        columns = min(vocabulary, max(_LEAST_COLUMNS, cells // tokens))
        rows = max(1, cells // columns)
    return (
        [slice(start, min(tokens, start + rows)) for start in range(0, tokens, rows)],
        [slice(start, min(vocabulary, start + columns)) for start in range(0, vocabulary, columns)],
    )


def _gather(tile: Tensor, wanted: Tensor, columns: slice, into: Tensor) -> None:
    """The tile's entries at ``wanted`` [rows, n] tokens, for those that it has."""
    places = (wanted - columns.start).clamp_(0, tile.shape[-1] - 1)
    inside = (wanted >= columns.start) & (wanted < columns.stop)
    into.copy_(torch.where(inside, tile.gather(-1, places), into))


def _scatter(tile: Tensor, wanted: Tensor, columns: slice, at_top: Tensor, at_target: Tensor) -> None:
    """Set the entries at all but the last of ``wanted`` [rows, k + 1], then add to those at the last."""
    inside = (wanted >= columns.start) & (wanted < columns.stop)
    row, place = inside[:, :-1].nonzero(as_tuple=True)
    tile[row, wanted[row, place] - columns.start] = at_top[row, place]
    row = inside[:, -1].nonzero().squeeze(-1)
    tile[row, wanted[row, -1] - columns.start] += at_target[row, 0]


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, columns: slice) -> Tensor:
    """float32 [tokens, columns]"""
    return linear(hidden, weight[columns], None if bias is None else bias[columns]).float()


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left · right, summed in float32."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total += torch.mm(left, right)
