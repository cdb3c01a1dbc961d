"""Counts a step's floating-point operations and measures the device's rate: what MFU is computed from."""

import resource
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from masters_ray.kernels.packing import PackedBatch

_MIB, _GIB = 2**20, 2**30
ALLOCATOR = (
    f"glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold={32 * _MIB}:"
    f"glibc.malloc.trim_threshold={16 * _GIB}:glibc.malloc.top_pad={256 * _MIB}"
)
"""glibc settings of a CPU worker: large pages, and memory kept between steps. Returning the memory and faulting it in
again costs a tenth of a step (docs/BENCHMARKS.md)."""


class OperationCounter:
    """Counts the floating-point operations that a model's forward and backward passes need at least.

    Linear layers: 2 per weight and token in the forward pass; in the backward pass 2 for the gradient of the input and
    2 for that of the weight, each if required. Attention of the language model, per channel and (query, key) pair that
    the mask allows: 4 forward, 8 backward. Not counted: recomputation, masked pairs, attention of padding, anything but
    matrix products.
    """

    def __init__(self, model: Any) -> None:
        self._in_layers = 0
        self._head: Tensor = model.lm_head.weight
        text = model.config.get_text_config()
        heads = text.num_attention_heads
        width = getattr(text, "head_dim", None) or text.hidden_size // heads
        self._per_pair = 4 * heads * width * text.num_hidden_layers
        for module in model.modules():
            if isinstance(module, nn.Linear):
                module.register_forward_pre_hook(self._count)
        model.model.register_forward_pre_hook(self._begin)  # forgets what the backward pass before has computed again

    def of(self, batch: PackedBatch) -> int:
        """Returns the operations of the forward pass over ``batch`` and its backward pass. Call it between the two."""
        weights = getattr(self._head, "ds_numel", None) or self._head.numel()
        in_head = 2 * len(batch.targets) * weights * (2 + self._head.requires_grad)
        return self._in_layers + in_head + 3 * self._per_pair * batch.layout.pairs

    def _begin(self, *_: Any) -> None:
        self._in_layers = 0

    def _count(self, module: nn.Linear, arguments: tuple[Tensor, ...]) -> None:
        passes = 1 + arguments[0].requires_grad + module.weight.requires_grad
        self._in_layers += 2 * arguments[0].numel() * module.out_features * passes


def matmul_rate(device: torch.device, dtype: torch.dtype, side: int | None = None) -> float:
    """Returns the floating-point operations per second of a product of two square matrices: the median of several."""
    side = side or (1024 if device.type == "cpu" else 8192)
    left = torch.randn(side, side, device=device, dtype=dtype)
    seconds = []
    for _ in range(6):
        started = time.perf_counter()
        left @ left
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - started)
    return 2 * side**3 / median(seconds[1:])


def peak_memory(device: torch.device) -> int:
    """Returns the peak so far, in bytes: allocated by PyTorch on a GPU, or resident memory of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def available_memory() -> int:
    """Returns the bytes of this machine's memory that new processes can have."""
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
