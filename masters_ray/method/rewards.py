"""Rewards of the answers of one group (METHOD 4)."""

import torch
from torch import Tensor

RESOLUTION = 1e-6
"""Precision to which divergences are compared, in nats. Divergences of equal answers differ by rounding, which scaling
to [0, 1] would amplify in a group whose divergences lie close together."""


def distillation_rewards(divergences: Tensor, least_spread: float = 0.0) -> Tensor:
    """Returns R_distill, [G]: 1 for the answer with the smallest divergence, 0 for the largest, linear in between.

    divergences: [G], mean JSD of each answer in nats. A range (max − min) of 0, or of at most ``least_spread`` nats,
    gives 0 for all. The result has no gradient.

    Example: ``[0.1, 0.3, 0.2]`` gives ``[1.0, 0.0, 0.5]``, and zeros with a least spread of 0.2.
    """
    divergences = (divergences.detach().double() / RESOLUTION).round()
    spread = divergences.max() - divergences.min()
    if spread <= round(least_spread / RESOLUTION):
        return torch.zeros_like(divergences, dtype=torch.float32)
    return ((divergences.max() - divergences) / spread).float()
