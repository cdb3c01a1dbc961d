"""Small makers of the tensors that tests of the loss need."""

from __future__ import annotations

import torch
from torch import Tensor


def random(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def top_k(logprobs: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Ids and log-probabilities of the k likeliest tokens and the mass of all others, as rollouts would keep them
    exactly; nested for all k, ties or not. logprobs: [tokens, vocabulary]."""
    values, ids = logprobs.sort(dim=-1, descending=True, stable=True)
    return ids[:, :k], values[:, :k], (1 - values[:, :k].exp().sum(-1)).clamp(min=0)
