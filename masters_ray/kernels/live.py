"""Computes what ``head`` computes per answer token, against a teacher that runs during training (METHOD 5).

It compares distributions over the whole vocabulary. It holds one slice of tokens × vocabulary at a time, and computes
the slice again in the backward pass.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import linear
from torch.utils.checkpoint import checkpoint

from masters_ray.method.divergence import jsd, left_out_error, with_rest

_BUFFERS = 8
"""float32 buffers of a slice's size held at once, for both models and gradients."""


@dataclass(frozen=True, kw_only=True)
class LiveScores:
    """The teacher's hidden states for some answer tokens, with its output head."""

    hidden: Tensor
    """[tokens, width], the states that predict the tokens"""
    weight: Tensor
    """[vocabulary, width], the teacher's output head"""


def live_terms(
    hidden: Tensor, weight: Tensor, targets: Tensor, teacher: LiveScores, *, logits_bytes: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns (log-prob of each target, JSD to the teacher, error bound of the JSD), float32 [tokens] each; JSD and
    bound in nats. The first two are differentiable in hidden and weight.

    hidden: [tokens, width]. weight: [vocabulary, width]. targets: [tokens]. If the two
    vocabularies are padded to different widths, the JSD is over the common tokens and the rest of each as one outcome;
    otherwise the bound is 0. logits_bytes: approximate memory held at a time."""

    def of(hidden: Tensor, targets: Tensor, teacher_hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logprobs = linear(hidden, weight).float().log_softmax(-1)
        own = logprobs.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
        p, q = linear(teacher_hidden, teacher.weight).float().softmax(-1), logprobs.exp()
        if p.shape == q.shape:
            return own, jsd(p, q), torch.zeros_like(own)
        common = min(p.shape[-1], q.shape[-1])
        p, q = (with_rest(one[:, :common], one[:, common:].sum(-1)) for one in (p, q))
        return own, jsd(p, q), left_out_error(p[:, -1], q[:, -1]).detach()

    rows = max(1, logits_bytes // (4 * _BUFFERS * max(len(weight), len(teacher.weight))))
    slices = zip(hidden.split(rows), targets.split(rows), teacher.hidden.split(rows), strict=True)
    logprobs, divergences, errors = zip(*(checkpoint(of, *one, use_reentrant=False) for one in slices), strict=True)
    return torch.cat(logprobs), torch.cat(divergences), torch.cat(errors)
