"""Magnitude masks in checkpoint coordinates (METHOD 2).

A weight matrix W with N entries at ratio r loses its ⌊r·N⌋ entries of smallest magnitude; ties go by position, so that
the sparsity is exact and the same on every device. Masks of one matrix are nested: a smaller ratio keeps a superset.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from masters_ray.config import Part


@dataclass(frozen=True, kw_only=True)
class MaskReport:
    """What masking one checkpoint achieved."""

    ratio: float
    """Fraction asked for."""
    sparsity: float
    """Entries that the mask zeroed, as a fraction of all entries of the masked matrices."""
    matrices: int
    """Matrices that were masked."""
    digest: str
    """SHA-256 over every tensor (masked or not) in the order of loading: name, dtype, shape, bytes."""


def zeroed_count(entries: int, ratio: float) -> int:
    """⌊ratio · entries⌋, with the ratio read as the decimal number that was written: 0.29 of 100 is 29."""
    return int(Fraction(repr(ratio)) * entries)


def mask_smallest(weight: Tensor, ratio: float) -> Tensor:
    """A copy of ``weight`` (any shape) with exactly ⌊ratio·N⌋ of its N entries zeroed, the smallest in magnitude.

    Among entries of equal magnitude at the threshold the first in memory order go first.

    Example: ``mask_smallest(tensor([[3., -1.], [1., 2.]]), 0.25)`` is ``[[3., 0.], [1., 2.]]``.
    """
    count = zeroed_count(weight.numel(), ratio)
    if count == 0:
        return weight.clone()
    flat = weight.reshape(-1)
    magnitude = flat.abs().float()
    threshold = magnitude.kthvalue(count).values
    below = magnitude < threshold
    tied = (magnitude == threshold).nonzero().squeeze(1)
    drop = below
    drop[tied[: count - int(below.sum())]] = True
    return flat.masked_fill(drop, 0).reshape(weight.shape)


def part_of(name: str) -> Part | None:
    """Which part of a vision-language model a checkpoint's weight matrix belongs to; None: never masked.

    Norms, biases and position tables are in no part. Covers the checkpoints of Qwen2.5-VL, Qwen3-VL, InternVL3 and
    InternVL3.5, in their own and in transformers' naming, with the experts of mixture models, which some of them hold
    in one tensor for all.
    """
    pieces = name.split(".")
    if not (name.endswith(".weight") or pieces[-2:-1] == ["experts"]):
        return None
    if "norm" in name or "pos_embed" in name or "position_embedding" in name or "bias" in pieces[-1]:
        return None
    if any("merger" in piece or "projector" in piece or piece == "mlp1" for piece in pieces):
        return "projector"
    if any(piece in ("visual", "vision_tower", "vision_model") for piece in pieces):
        return "vision"
    if "lm_head" in pieces:
        return "lm_head"
    if "embed_tokens" in pieces:
        return "embeddings"
    return "language" if "layers" in pieces else None


def masked(
    tensors: Iterable[tuple[str, Tensor]], ratio: float, parts: frozenset[Part], result: list[MaskReport]
) -> Iterator[tuple[str, Tensor]]:
    """The checkpoint's tensors one by one, matrices of ``parts`` masked at ``ratio``; a stream, never a whole copy.

    A 3-D tensor [experts, …] is a matrix for each expert of a mixture model.

    When the stream is exhausted, one MaskReport is appended to ``result``.
    """
    digest = hashlib.sha256()
    entries = zeroed = matrices = 0
    for name, tensor in tensors:
        if part_of(name) in parts and (tensor.ndim == 2 or _holds_experts(name, tensor)):
            count = 1 if tensor.ndim == 2 else len(tensor)
            tensor = mask_smallest(tensor, ratio) if count == 1 else _each_masked(tensor, ratio)
            matrices += count
            entries += tensor.numel()
            zeroed += count * zeroed_count(tensor.numel() // count, ratio)
        update_digest(digest, name, tensor)
        yield name, tensor
    sparsity = zeroed / entries if entries else 0.0
    result.append(MaskReport(ratio=ratio, sparsity=sparsity, matrices=matrices, digest=digest.hexdigest()))


def _each_masked(experts: Tensor, ratio: float) -> Tensor:
    return torch.stack([mask_smallest(expert, ratio) for expert in experts])


def _holds_experts(name: str, tensor: Tensor) -> bool:
    return tensor.ndim == 3 and "experts" in name.split(".")


def update_digest(digest: hashlib._Hash, name: str, tensor: Tensor) -> None:
    """Feed one named tensor into a SHA-256."""
    digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}:".encode())
    digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
