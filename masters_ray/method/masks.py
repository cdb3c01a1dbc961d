"""Magnitude masks in checkpoint coordinates (METHOD 2), exact and equal on every device.

A mask zeroes the entries of a matrix up to a threshold in the order of their magnitudes. Magnitudes are compared as
integers, by the bits of their format, so that counting finds the threshold in passes over the matrix and without
sorting. Masks of one matrix are nested: one reading finds the thresholds of all ratios.
"""

import hashlib
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from fractions import Fraction
from typing import NamedTuple

import torch
from torch import Tensor

from masters_ray.config import Part
from masters_ray.errors import CheckpointError
from masters_ray.families import Architecture, Cut, without_numbers

_DIGIT = 16  # bits that one pass counts; the first digit lacks the sign
_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True, kw_only=True)
class MaskReport:
    ratio: float
    sparsity: float  # entries that the mask zeroed, as a fraction of all entries of the masked matrices
    masked: dict[str, int] = field(default_factory=dict, repr=False)
    """Masked matrices: name with * in place of numbers → count."""
    unmasked: dict[str, int] = field(default_factory=dict, repr=False)
    digest: str  # SHA-256 over the ``tensor_digest`` of every tensor, masked or not, in the order of loading


class Threshold(NamedTuple):
    """Where a mask ends in a matrix: it zeroes all smaller magnitudes, and the first ``ties`` entries, in row-major
    order, that have just this one."""

    magnitude: int  # the bits of the number without its sign, as an integer
    ties: int


def zeroed_count(entries: int, ratio: float) -> int:
    """Returns ⌊ratio · entries⌋, with the ratio taken as the decimal number that was written: 0.29 of 100 is 29."""
    return int(Fraction(repr(ratio)) * entries)


def mask_smallest(weight: Tensor, ratio: float) -> Tensor:
    """Returns a copy of ``weight`` (any shape) with its ⌊ratio·N⌋ entries of smallest magnitude, of N, zeroed.

    Of entries of equal magnitude at the threshold the first in row-major order are zeroed. Masks of one matrix are
    nested: a smaller ratio keeps a superset.

    Example: ``mask_smallest(tensor([[3., -1.], [1., 2.]]), 0.25)`` is ``[[3., 0.], [1., 2.]]``.
    """
    masked = weight.clone()
    _zero(masked, *thresholds(weight, [zeroed_count(weight.numel(), ratio)]))
    return masked


def thresholds(weight: Tensor, counts: Sequence[int]) -> list[Threshold]:
    """Returns the threshold of each mask. weight: without NaN. counts: entries that each mask zeroes."""
    return _thresholds(_magnitudes(weight).reshape(-1), 8 * weight.itemsize - _DIGIT, counts)


def _thresholds(numbers: Tensor, shift: int, counts: Sequence[int]) -> list[Threshold]:
    """As ``thresholds``, of integers that have one more digit than ``shift`` bits."""
    digits = numbers >> shift if shift else numbers
    up_to = torch.bincount(digits, minlength=1).cumsum(0)  # numbers whose digit is at most the index
    found = []
    for count in counts:
        if count == 0:
            found.append(Threshold(0, 0))
            continue
        digit = int(torch.searchsorted(up_to, count))
        left = count - (int(up_to[digit - 1]) if digit else 0)
        if shift:
            alike = numbers[digits == digit] & (2**shift - 1)
            [inner] = _thresholds(alike, shift - _DIGIT, [left])
            found.append(Threshold((digit << shift) + inner.magnitude, inner.ties))
        else:
            found.append(Threshold(digit, left))
    return found


def _magnitudes(weight: Tensor) -> Tensor:
    """Returns non-negative integers that order as the magnitudes do: the numbers' bits without the sign."""
    integer = _INTEGERS[weight.itemsize]
    return weight.detach().view(integer).bitwise_and(torch.iinfo(integer).max).contiguous()


def _zero(matrix: Tensor, threshold: Threshold) -> None:
    """Zeroes the entries up to the threshold, in place."""
    magnitudes = _magnitudes(matrix)
    drop = magnitudes < threshold.magnitude
    if threshold.ties:
        tied = (magnitudes == threshold.magnitude).reshape(-1).nonzero().squeeze(1)
        drop.view(-1)[tied[: threshold.ties]] = True
    matrix.masked_fill_(drop, 0)


class Masker:
    """Masks the matrices of ``parts`` while a checkpoint is read, each matrix alone also where a tensor holds several.
    It keeps the thresholds: a matrix is searched once for all ``ratios``, and once more for another one."""

    def __init__(
        self,
        architecture: Architecture,
        parts: frozenset[Part],
        ratios: Sequence[float],
        *,
        device: torch.device | str = "cpu",
        threads: int = 1,
    ) -> None:
        """device: where matrices are masked; the result does not depend on it. threads: tensors worked on at a time."""
        self._architecture, self._parts = architecture, parts
        self._ratios, self._device, self._threads = tuple(ratios), torch.device(device), threads
        self._thresholds: dict[tuple[str, int, float], Threshold] = {}
        """(tensor, number of the matrix in it, ratio) → threshold."""

    def stream(
        self, tensors: Iterable[tuple[str, Tensor]], ratio: float, result: list[MaskReport]
    ) -> Iterator[tuple[str, Tensor]]:
        """Yields the checkpoint's tensors one by one, masked at ``ratio``; masked ones are on the masker's device.

        Appends one MaskReport to ``result`` when the stream is exhausted. Raises CheckpointError when a tensor holds
        NaN or infinity, and at a ratio above 0 when a matrix to mask is quantised or when no matrix is to be masked.
        """
        digest = hashlib.sha256()
        entries = zeroed = 0
        took, left = Counter[str](), Counter[str]()
        for name, tensor, cut, of_tensor in self._in_order(tensors, ratio):
            digest.update(of_tensor.encode())
            if cut is not None and self._architecture.part_of(name) in self._parts:
                took[without_numbers(name)] += cut.matrices
                entries += tensor.numel()
                zeroed += sum(zeroed_count(matrix.numel(), ratio) for matrix in _matrices(tensor, cut))
            elif cut is not None:
                left[without_numbers(name)] += cut.matrices
            yield name, tensor
        if ratio > 0 and not took:
            found = f"none of the checkpoint's weights is a matrix of {', '.join(sorted(self._parts))} to be masked"
            raise CheckpointError(found)
        share, sha = zeroed / entries if entries else 0.0, digest.hexdigest()
        names, others = (dict(sorted(one.items())) for one in (took, left))
        result.append(MaskReport(ratio=ratio, sparsity=share, masked=names, unmasked=others, digest=sha))

    def _in_order(
        self, tensors: Iterable[tuple[str, Tensor]], ratio: float
    ) -> Iterator[tuple[str, Tensor, Cut | None, str]]:
        """Yields name, tensor, how it is cut, and digest; works on the next tensors meanwhile."""
        under_way: deque[Future[tuple[str, Tensor, Cut | None, str]]] = deque()
        with ThreadPoolExecutor(self._threads, thread_name_prefix="mask") as pool:
            for name, tensor in tensors:
                under_way.append(pool.submit(self._masked, name, tensor, ratio))
                if len(under_way) > self._threads:
                    yield under_way.popleft().result()
            while under_way:
                yield under_way.popleft().result()

    def _masked(self, name: str, tensor: Tensor, ratio: float) -> tuple[str, Tensor, Cut | None, str]:
        if tensor.dtype.is_floating_point and tensor.numel():
            numbers = tensor.float() if tensor.itemsize == 1 else tensor
            if not all(torch.isfinite(bound) for bound in torch.aminmax(numbers)):
                raise CheckpointError(f"{name} holds numbers that are none (NaN, infinite): the checkpoint is damaged")
        cut = self._architecture.cut(name, tensor.shape)
        if ratio > 0 and cut is not None and self._architecture.part_of(name) in self._parts:
            if not (tensor.dtype.is_floating_point and tensor.itemsize > 1):
                raise CheckpointError(f"{name} is quantised ({tensor.dtype}): a mask needs the checkpoint before that")
            tensor = tensor.to(self._device, copy=True)
            for number, matrix in enumerate(_matrices(tensor, cut)):
                _zero(matrix, self._threshold(name, number, matrix, ratio))
        return name, tensor, cut, tensor_digest(name, tensor)

    def _threshold(self, name: str, number: int, matrix: Tensor, ratio: float) -> Threshold:
        if (name, number, ratio) not in self._thresholds:
            ratios = {ratio, *self._ratios}
            found = thresholds(matrix, [zeroed_count(matrix.numel(), one) for one in ratios])
            self._thresholds |= {(name, number, one): own for one, own in zip(ratios, found, strict=True)}
        return self._thresholds[name, number, ratio]


def _matrices(tensor: Tensor, cut: Cut) -> Iterator[Tensor]:
    """Yields views of the matrices that ``tensor`` holds."""
    for piece in tensor.split(cut.sizes, cut.axis):
        yield from [piece] if cut.experts is None else piece


def tensor_digest(name: str, tensor: Tensor) -> str:
    """Returns the SHA-256 of a tensor's name, dtype, shape and bytes."""
    total = hashlib.sha256(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}:".encode())
    total.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()
