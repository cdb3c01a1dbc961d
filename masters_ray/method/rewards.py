"""Rewards of the answers of one group (METHOD 4)."""

from __future__ import annotations

import torch
from torch import Tensor

RESOLUTION = 1e-6
"""Nats. Divergences are compared to this precision: two equal answers differ by rounding alone, which the stretch from
0 to 1 would blow up in a group whose divergences lie close together."""


def distillation_rewards(divergences: Tensor, least_spread: float = 0.0) -> Tensor:
    """R_distill: 1 for the answer on which teacher and student agree best, 0 for the worst, linear in between.

    divergences: [G], one mean JSD per answer, in nats. All equal, or no further apart than ``least_spread`` (nats),
    gives 0 for all. The result carries no gradient.

    Example: ``[0.1, 0.3, 0.2]`` gives ``[1.0, 0.0, 0.5]``, and zeros with a least spread of 0.2.
    """
    divergences = (divergences.detach().double() / RESOLUTION).round()
    spread = divergences.max() - divergences.min()
    if spread <= round(least_spread / RESOLUTION):
        return torch.zeros_like(divergences, dtype=torch.float32)
    return ((divergences.max() - divergences) / spread).float()
