"""How much arithmetic a step is, and how fast the device can do it."""

from __future__ import annotations

import resource
import time
from typing import Any

import torch
from torch import Tensor, nn

from masters_ray.attention import Layout

_SIDE = {"cpu": 1024, "cuda": 8192}
ALLOCATOR = ":".join(
    f"glibc.malloc.{name}={value}"
    for name, value in {
        "hugetlb": 1,
        "mmap_threshold": 32 * 2**20,
        "trim_threshold": 16 * 2**30,
        "top_pad": 256 * 2**20,
    }.items()
)
"""How a CPU worker's memory is managed: in large pages, and kept between steps instead of given back and faulted in
again, which costs a tenth of a step (docs/BENCHMARKS.md)."""


class Work:
    """Counts the floating-point operations that a model's forward and backward passes cannot do without.

    Linear layers: 2 per weight and token on the way there; on the way back as many for the gradient of the input and of
    the weight, each if it is wanted. Attention of the language model: the pairs that see each other, four operations
    per channel there and eight back. What is computed twice, masked out or padding is not counted, nor anything that is
    no matrix product.
    """

    def __init__(self, model: nn.Module, text: Any) -> None:
        """text: the language model's configuration."""
        self._operations = 0
        self._counting = False
        heads = text.num_attention_heads
        width = getattr(text, "head_dim", None) or text.hidden_size // heads
        self._per_pair = 4 * heads * width * text.num_hidden_layers
        for module in model.modules():
            if isinstance(module, nn.Linear):
                module.register_forward_pre_hook(self._count)

    def forward(self, layout: Layout) -> _Counting:
        """Count what runs inside: ``with work.forward(batch.layout): model(batch)``."""
        self._operations += 3 * self._per_pair * layout.pairs
        return _Counting(self)

    def head(self, tokens: int, weight: Tensor) -> None:
        """The output head over ``tokens``; its weight is [vocabulary, width]."""
        self._operations += 2 * tokens * _size(weight) * (2 + weight.requires_grad)

    def take(self) -> int:
        """Operations since the last call."""
        operations, self._operations = self._operations, 0
        return operations

    def _count(self, module: nn.Module, arguments: tuple[Any, ...]) -> None:
        if not self._counting or not isinstance(module, nn.Linear):
            return
        states: Tensor = arguments[0]
        tokens = states.numel() // module.in_features
        backward = int(states.requires_grad) + int(module.weight.requires_grad)
        self._operations += 2 * tokens * module.in_features * module.out_features * (1 + backward)


class _Counting:
    def __init__(self, work: Work) -> None:
        self._work = work

    def __enter__(self) -> None:
        self._work._counting = True

    def __exit__(self, *_: object) -> None:
        self._work._counting = False


def matmul_rate(device: torch.device, dtype: torch.dtype, side: int | None = None, repeats: int = 5) -> float:
    """Floating-point operations per second of a product of two square matrices, the median of ``repeats``."""
    side = side or _SIDE.get(device.type, 1024)
    left = torch.randn(side, side, device=device, dtype=dtype)
    seconds = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        product = left @ left
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - started)
        del product
    return 2 * side**3 / sorted(seconds[1:])[repeats // 2]


def peak_memory(device: torch.device) -> int:
    """Bytes: the most that PyTorch held on the GPU, or that this process had resident on a CPU, so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _size(weight: Tensor) -> int:
    return getattr(weight, "ds_numel", None) or weight.numel()
