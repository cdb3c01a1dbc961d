"""What ``head`` gives of each answer token, against a teacher that is asked while the student learns (METHOD 5).

Distributions are compared over the whole vocabulary. What is held at a time is a slice of tokens × vocabulary, computed
again on the way back.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import linear
from torch.utils.checkpoint import checkpoint

from masters_ray.method.divergence import jsd, left_out_error, with_rest

_BUFFERS = 8
"""float32 numbers per token and vocabulary entry while a slice is worked on, both models and gradients together."""


@dataclass(frozen=True, kw_only=True)
class LiveScores:
    """The teacher's side of some answer tokens."""

    hidden: Tensor
    """[tokens, width], the states that predict the tokens"""
    weight: Tensor
    """[vocabulary, width], its output head"""
    bias: Tensor | None
    """[vocabulary]"""


def live_terms(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, teacher: LiveScores, *, logits_bytes: int
) -> tuple[Tensor, Tensor, Tensor]:
    """(log-probability of each target, JSD to the teacher, most that what was not compared can add to it; both in
    nats), float32 [tokens] each.

    hidden: [tokens, width]; weight: [vocabulary, width] and bias: [vocabulary] or None; targets: [tokens]. Where the
    two vocabularies are padded to different widths, the common part is compared, and the rest of each as one outcome.
    logits_bytes: about how much is held at a time. The first two are differentiable in hidden, weight and bias.
    """

    def of(hidden: Tensor, targets: Tensor, teacher_hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logprobs = linear(hidden, weight, bias).float().log_softmax(-1)
        own = logprobs.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
        p, q = linear(teacher_hidden, teacher.weight, teacher.bias).float().softmax(-1), logprobs.exp()
        if p.shape == q.shape:
            return own, jsd(p, q), torch.zeros_like(own)
        common = min(p.shape[-1], q.shape[-1])
        p, q = (with_rest(one[:, :common], one[:, common:].sum(-1)) for one in (p, q))
        return own, jsd(p, q), left_out_error(p[:, -1], q[:, -1]).detach()

    rows = max(1, logits_bytes // (4 * _BUFFERS * max(len(weight), len(teacher.weight))))
    slices = zip(hidden.split(rows), targets.split(rows), teacher.hidden.split(rows), strict=True)
    logprobs, divergences, errors = zip(*(checkpoint(of, *one, use_reentrant=False) for one in slices), strict=True)
    return torch.cat(logprobs), torch.cat(divergences), torch.cat(errors)
