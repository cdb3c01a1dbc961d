"""Computes log-prob and JSD of each answer token from hidden states, without all logits in memory.

The output head and everything after it run over tiles of tokens × vocabulary. A tile of logits lives in one buffer that
becomes probabilities in place in the forward pass and gradients in the backward pass, so at most one tile is held. If
all logits fit, they are one tile that is kept for the backward pass; otherwise backward computes every tile again.
Against a teacher that runs during training (METHOD 5), distributions are compared over the whole vocabulary, in slices
of tokens that backward computes again.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear
from torch.utils.checkpoint import checkpoint

from masters_ray.method.divergence import jsd, jsd_and_slope, left_out_error, with_rest

_CPU_TILE_BYTES = 4 * 2**20  # tile size on a CPU: fits a core's cache
_LEAST_COLUMNS = 2048
"""Minimum columns of a tile, if the vocabulary has that many: narrower tiles waste the matrix unit."""
_LIVE_BUFFERS = 8  # float32 buffers of a slice's size held at once, for both models and gradients


def answer_terms(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    top_ids: Tensor,
    top_logprobs: Tensor,
    left_out: Tensor,
    *,
    logits_bytes: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns (log-prob of each target, JSD to the stored teacher scores, JSD's error bound), float32 [tokens] each, in
    nats (``divergence.jsd`` on k + 1 outcomes, ``left_out_error``). The first two support a single backward pass, to
    hidden and weight.

    hidden: [tokens, width], the states that predict the targets. weight: the output head, [vocabulary, width]. targets:
    [tokens]. top_ids, top_logprobs: [tokens, k], left_out: [tokens], the teacher's. logits_bytes: maximum bytes of
    float32 logits held at a time. A top id without a row in the head (the teacher's vocabulary may be padded further)
    counts as left out; a target without a row has log-prob NaN.
    """
    probabilities = top_logprobs.exp()
    lacking = probabilities * (top_ids >= weight.shape[0])
    left_out = left_out + lacking.sum(-1)
    return _AnswerTerms.apply(hidden, weight, targets, top_ids, probabilities - lacking, left_out, logits_bytes)


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
                logits = linear(hidden[rows], weight[columns]).float()
                _gather(logits, wanted[rows], columns, into=chosen[rows])
                top = torch.maximum(highest[rows], logits.amax(-1, keepdim=True))
                total[rows] *= (highest[rows] - top).exp_()
                total[rows] += logits.sub_(top).exp_().sum(-1, keepdim=True)
                highest[rows] = top
        log_total = highest + total.log()
        chosen -= log_total
        student = with_rest(chosen[:, :-1].exp().masked_fill(top_ids >= vocabulary, 0.0))
        divergence, slope = jsd_and_slope(with_rest(top_probabilities, left_out), student)
        ctx.save_for_backward(hidden, weight, wanted, log_total, student, slope)
        ctx.tiles = tiles
        ctx.kept = logits.div_(total) if list(map(len, tiles)) == [1, 1] else None
        error = left_out_error(left_out, student[:, -1])
        ctx.mark_non_differentiable(error)
        return chosen[:, -1].contiguous(), divergence, error

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        hidden, weight, wanted, log_total, student, slope = ctx.saved_tensors
        for_logprobs, for_divergence = (gradient.unsqueeze(-1) for gradient in gradients[:2])
        mean_slope = (student * slope).sum(-1, keepdim=True)
        everywhere = for_divergence * (slope[:, -1:] - mean_slope) - for_logprobs
        at_top = (for_divergence * (slope[:, :-1] - mean_slope) - for_logprobs) * student[:, :-1]
        grad_hidden = torch.zeros_like(hidden, dtype=torch.float32)
        grad_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        for columns in ctx.tiles[1]:
            here = None if grad_weight is None else grad_weight[columns].float()  # a view if already float32
            for rows in ctx.tiles[0]:
                if ctx.kept is not None:
                    slopes, ctx.kept = ctx.kept, None
                else:
                    slopes = linear(hidden[rows], weight[columns]).float().sub_(log_total[rows]).exp_()
                slopes *= everywhere[rows]
                _scatter(slopes, wanted[rows], columns, at_top[rows], for_logprobs[rows])
                slopes = slopes.to(weight.dtype)
                _add_product(grad_hidden[rows], slopes, weight[columns])
                if here is not None:
                    _add_product(here, slopes.T, hidden[rows])
            if grad_weight is not None and here is not None and here.dtype != grad_weight.dtype:
                grad_weight[columns] = here
        return grad_hidden.to(hidden.dtype), grad_weight, None, None, None, None, None


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


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Adds left · right to ``total``; the sum is in the dtype of ``total``."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total += torch.mm(left, right)


@dataclass(frozen=True, kw_only=True)
class LiveScores:
    hidden: Tensor  # [tokens, width], the teacher's states that predict the tokens
    weight: Tensor  # [vocabulary, width], the teacher's output head


def live_terms(
    hidden: Tensor, weight: Tensor, targets: Tensor, teacher: LiveScores, *, logits_bytes: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns what ``answer_terms`` returns, against the teacher's whole distribution. If the two vocabularies are
    padded to different widths, the JSD is over the common tokens and the rest of each as one outcome; otherwise its
    error bound is 0. logits_bytes: approximate memory held at a time."""

    def of(hidden: Tensor, targets: Tensor, teacher_hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logprobs = linear(hidden, weight).float().log_softmax(-1)
        own = logprobs.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
        p, q = linear(teacher_hidden, teacher.weight).float().softmax(-1), logprobs.exp()
        if p.shape == q.shape:
            return own, jsd(p, q), torch.zeros_like(own)
        common = min(p.shape[-1], q.shape[-1])
        p, q = (with_rest(one[:, :common], one[:, common:].sum(-1)) for one in (p, q))
        return own, jsd(p, q), left_out_error(p[:, -1], q[:, -1]).detach()

    rows = max(1, logits_bytes // (4 * _LIVE_BUFFERS * max(len(weight), len(teacher.weight))))
    slices = zip(hidden.split(rows), targets.split(rows), teacher.hidden.split(rows), strict=True)
    terms = [checkpoint(of, *one, use_reentrant=False) for one in slices]
    logprobs, divergences, errors = (torch.cat(one) for one in zip(*terms, strict=True))
    return logprobs, divergences, errors
