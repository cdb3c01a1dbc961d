"""Computes log-prob and JSD of each answer token from hidden states, without all logits in memory.

The output head and everything after it run over tiles of tokens × vocabulary. A tile of logits lives in one buffer that
becomes probabilities in place in the forward pass and gradients in the backward pass, so at most one tile is held. If
all logits fit, they are one tile that is kept for the backward pass; otherwise backward computes every tile again.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from masters_ray.method.divergence import jsd_and_slope, left_out_error, with_rest

_CPU_TILE_BYTES = 4 * 2**20
"""Tile size on a CPU: fits a core's cache."""
_LEAST_COLUMNS = 2048
"""Minimum columns of a tile, if the vocabulary has that many: narrower tiles waste the matrix unit."""


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
    """Returns (log-prob of each target, JSD to the stored teacher scores, JSD's error bound), float32 [tokens] each, in
    nats (``divergence.jsd`` on k + 1 outcomes, ``left_out_error``). The first two support a single backward pass, to
    hidden, weight and bias.

    hidden: [tokens, width], the states that predict the targets. weight, bias: the output head, [vocabulary, width] and
    [vocabulary] or None. targets: [tokens]. top_ids, top_logprobs: [tokens, k], left_out: [tokens], the teacher's.
    logits_bytes: maximum bytes of float32 logits held at a time. A top id without a row in the head (the teacher's
    vocabulary may be padded further) counts as left out; a target without a row has log-prob NaN.
    """
    probabilities = top_logprobs.exp()
    lacking = probabilities * (top_ids >= weight.shape[0])
    left_out = left_out + lacking.sum(-1)
    return _AnswerTerms.apply(hidden, weight, bias, targets, top_ids, probabilities - lacking, left_out, logits_bytes)


class _AnswerTerms(torch.autograd.Function):
    """Autograd function of ``answer_terms``. The derivatives by the logits z need few numbers per token:

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
            here = None if grad_weight is None else grad_weight[columns].float()  # a view if already float32
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
    """Cuts tokens × vocabulary into tiles; returns (slices of the tokens, slices of the vocabulary)."""
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
    """Copies the tile's entries at token ids ``wanted`` [rows, n] to ``into``, where the tile has that column."""
    places = (wanted - columns.start).clamp_(0, tile.shape[-1] - 1)
    inside = (wanted >= columns.start) & (wanted < columns.stop)
    into.copy_(torch.where(inside, tile.gather(-1, places), into))


def _scatter(tile: Tensor, wanted: Tensor, columns: slice, at_top: Tensor, at_target: Tensor) -> None:
    """Sets the tile at all but the last of ``wanted`` [rows, k + 1] to ``at_top``; adds ``at_target`` at the last."""
    inside = (wanted >= columns.start) & (wanted < columns.stop)
    row, place = inside[:, :-1].nonzero(as_tuple=True)
    tile[row, wanted[row, place] - columns.start] = at_top[row, place]
    row = inside[:, -1].nonzero().squeeze(-1)
    tile[row, wanted[row, -1] - columns.start] += at_target[row, 0]


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, columns: slice) -> Tensor:
    """Returns float32 [tokens, columns]."""
    return linear(hidden, weight[columns], None if bias is None else bias[columns]).float()


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Adds left · right to ``total``; the sum is in the dtype of ``total``."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total += torch.mm(left, right)
