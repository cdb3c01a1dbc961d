"""Jensen–Shannon divergence between teacher and student next-token distributions (METHOD 5).

Natural logarithm, so 0 ≤ D ≤ ln 2. The teacher's distribution is stored as its k most likely tokens and the tail mass
of all others; the JSD compares both distributions on these k + 1 outcomes. It is a lower bound of the JSD over the
whole vocabulary, and equals it when k is the vocabulary size.
"""

import torch
from torch import Tensor

_SMALLEST = 1e-30  # floor inside logarithms: x·log(x) at x = 0 counts as 0 and has a finite gradient


def with_rest(top: Tensor, rest: Tensor | None = None) -> Tensor:
    """Appends the mass of all others, by default 1 − the sum of ``top``, at least 0: [tokens, k] → [tokens, k + 1]."""
    others = (1.0 - top.sum(-1)).clamp(min=0.0) if rest is None else rest
    return torch.cat([top, others.unsqueeze(-1)], -1)


def left_out_error(teacher: Tensor, student: Tensor) -> Tensor:
    """Returns an upper bound of (JSD over the whole vocabulary − JSD on k + 1 outcomes), in nats (METHOD 5).

    teacher, student: the masses a and b outside the k tokens; the result has their shape. The bound is
    ½ (a ln((a + b)/a) + b ln((a + b)/b)) ≤ (a + b)/2 · ln 2, reached if the two share no token outside the k.

    Example: a = ½ and b = ¾ give ½ (½ ln 2.5 + ¾ ln(5/3)) = 0.4206.
    """
    both = teacher + student
    parts = torch.xlogy(teacher, teacher) + torch.xlogy(student, student)
    return ((torch.xlogy(both, both) - parts) / 2).clamp(min=0.0)


def jsd(p: Tensor, q: Tensor) -> Tensor:
    """Returns the JSD of two probability tensors [..., outcomes] over the last axis, in nats.

    Example: (½, ½) and (1, 0) give ½·(½·ln(½/¾) + ½·ln(½/¼)) + ½·ln(1/¾) = 0.2158.
    """
    log_middle = _log((p + q) / 2)
    towards_p = (p * (_log(p) - log_middle)).sum(-1)
    towards_q = (q * (_log(q) - log_middle)).sum(-1)
    return (towards_p + towards_q) / 2


def jsd_and_slope(p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    """Returns ``jsd`` and its derivative by each entry of q: ½ ln(q/m), m = (p + q)/2; for use without autograd."""
    return jsd(p, q), (_log(q) - _log((p + q) / 2)) / 2


def _log(probabilities: Tensor) -> Tensor:
    return probabilities.clamp(min=_SMALLEST).log()
