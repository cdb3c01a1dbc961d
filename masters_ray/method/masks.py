"""Magnitude masks in checkpoint coordinates (METHOD 2), exact and equal on every device."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction

import torch
from torch import Tensor

from masters_ray.config import Part
from masters_ray.errors import CheckpointError
from masters_ray.parts import matrices_in, part_of, without_numbers


@dataclass(frozen=True, kw_only=True)
class MaskReport:
    ratio: float
    sparsity: float  # entries that the mask zeroed, as a fraction of all entries of the masked matrices
    masked: dict[str, int] = field(default_factory=dict, repr=False)
    """Masked matrices: name with * in place of numbers → count."""
    unmasked: dict[str, int] = field(default_factory=dict, repr=False)
    digest: str  # SHA-256 over every tensor (masked or not) in the order of loading: name, dtype, shape, bytes


def zeroed_count(entries: int, ratio: float) -> int:
    """Returns ⌊ratio · entries⌋, with the ratio taken as the decimal number that was written: 0.29 of 100 is 29."""
    return int(Fraction(repr(ratio)) * entries)


def mask_smallest(weight: Tensor, ratio: float) -> Tensor:
    """Returns a copy of ``weight`` (any shape) with its ⌊ratio·N⌋ entries of smallest magnitude, of N, zeroed.

    Of entries of equal magnitude at the threshold the first in row-major order are zeroed. Masks of one matrix are
    nested: a smaller ratio keeps a superset.

    Example: ``mask_smallest(tensor([[3., -1.], [1., 2.]]), 0.25)`` is ``[[3., 0.], [1., 2.]]``.
    """
    count = zeroed_count(weight.numel(), ratio)
    if count == 0:
        return weight.clone()
    flat = weight.reshape(-1)
    magnitude = flat.abs().float()
    threshold = magnitude.kthvalue(count).values
    drop = magnitude < threshold
    tied = (magnitude == threshold).nonzero().squeeze(1)
    drop[tied[: count - int(drop.sum())]] = True
    return flat.masked_fill(drop, 0).reshape(weight.shape)


def masked(
    tensors: Iterable[tuple[str, Tensor]], ratio: float, parts: frozenset[Part], result: list[MaskReport]
) -> Iterator[tuple[str, Tensor]]:
    """Yields the checkpoint's tensors one by one, the matrices of ``parts`` masked at ``ratio``.

    A 3-D tensor [experts, …] holds a matrix per expert of a mixture model; each expert's matrix is masked alone.

    Appends one MaskReport to ``result`` when the stream is exhausted. Raises CheckpointError when a tensor holds NaN or
    infinity, and at a ratio above 0 when a matrix to mask is quantised or when no matrix is to be masked.
    """
    digest = hashlib.sha256()
    entries = zeroed = 0
    took, left = Counter[str](), Counter[str]()
    for name, tensor in tensors:
        numbers = tensor.float() if tensor.itemsize == 1 else tensor
        if tensor.dtype.is_floating_point and not torch.isfinite(numbers).all():
            raise CheckpointError(f"{name} holds numbers that are none (NaN, infinite): the checkpoint is damaged")
        count = matrices_in(name, tensor.shape)
        if count and part_of(name) in parts:
            if ratio > 0 and not (tensor.dtype.is_floating_point and tensor.itemsize > 1):
                raise CheckpointError(f"{name} is quantised ({tensor.dtype}): a mask needs the checkpoint before that")
            matrices = tensor.reshape(count, *tensor.shape[-2:])
            tensor = torch.stack([mask_smallest(matrix, ratio) for matrix in matrices]).reshape(tensor.shape)
            took[without_numbers(name)] += count
            entries += tensor.numel()
            zeroed += count * zeroed_count(tensor.numel() // count, ratio)
        elif count:
            left[without_numbers(name)] += count
        update_digest(digest, name, tensor)
        yield name, tensor
    if ratio > 0 and not took:
        raise CheckpointError(
            f"none of the checkpoint's weights is a matrix of {', '.join(sorted(parts))} to be masked"
        )
    share, sha = zeroed / entries if entries else 0.0, digest.hexdigest()
    names, others = (dict(sorted(one.items())) for one in (took, left))
    result.append(MaskReport(ratio=ratio, sparsity=share, masked=names, unmasked=others, digest=sha))


def update_digest(digest: "hashlib._Hash", name: str, tensor: Tensor) -> None:
    digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}:".encode())
    digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
