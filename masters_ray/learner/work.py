"""How much arithmetic a step is, and how fast the device can do it."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from masters_ray.kernels.packing import PackedBatch

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


class OperationCounter:
    """Counts the floating-point operations that a model's forward and backward passes cannot do without.

    Linear layers: 2 per weight and token on the way there; on the way back as many for the gradient of the input and of
    the weight, each if it is wanted. Attention of the language model: the pairs that see each other, four operations
    per channel there and eight back. What is computed twice, masked out or padding is not counted, nor anything that is
    no matrix product.
    """

    def __init__(self, model: Any) -> None:
        self._operations = 0
        self._counting = False
        self._head: Tensor = model.lm_head.weight
        text = model.config.get_text_config()
        heads = text.num_attention_heads
        width = getattr(text, "head_dim", None) or text.hidden_size // heads
        self._per_pair = 4 * heads * width * text.num_hidden_layers
        for module in model.modules():
            if isinstance(module, nn.Linear):
                module.register_forward_pre_hook(self._count)

    @contextmanager
    def counted(self, batch: PackedBatch) -> Iterator[None]:
        """Count the pass over a batch that the block makes, its output head and its way back."""
        weights = getattr(self._head, "ds_numel", None) or self._head.numel()
        self._operations += 2 * len(batch.targets) * weights * (2 + self._head.requires_grad)
        self._operations += 3 * self._per_pair * batch.layout.pairs
        self._counting = True
        yield
        self._counting = False

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
