"""What masking a checkpoint costs a rank: ``python -m bench.masking KIND THREADS`` prints it as JSON.

KIND is ``search`` (a matrix at a time by kthvalue, and one digest over all bytes, in one thread) or ``count`` (the
package's Masker). Both mask the same random bfloat16 matrices at the ratios of the default schedule, stage after stage,
and end with the same tensors; ``count`` reads every matrix for all stages at first.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Iterator

import torch
from torch import Tensor

from bench.scale import at
from masters_ray.families import Architecture
from masters_ray.method.masks import Masker, MaskReport, zeroed_count

RATIOS = (0.2, 0.15, 0.1, 0.05, 0.0)
MATRICES, ROWS, COLUMNS = at((24, 2048, 1024), (2, 32, 16))


def checkpoint() -> list[tuple[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    names = [f"model.language_model.layers.{number}.mlp.up_proj.weight" for number in range(MATRICES)]
    return [(name, torch.randn(ROWS, COLUMNS, generator=generator).to(torch.bfloat16)) for name in names]


def searched(tensors: list[tuple[str, Tensor]], ratio: float) -> Iterator[Tensor]:
    digest = hashlib.sha256()
    for _, tensor in tensors:
        flat = tensor.reshape(-1)
        magnitude = flat.abs().float()
        if count := zeroed_count(flat.numel(), ratio):
            threshold = magnitude.kthvalue(count).values
            drop = magnitude < threshold
            tied = (magnitude == threshold).nonzero().squeeze(1)
            drop[tied[: count - int(drop.sum())]] = True
            flat = flat.masked_fill(drop, 0)
        digest.update(flat.view(torch.uint8).numpy().data)
        yield flat.reshape(tensor.shape)


def main(kind: str, threads: int) -> None:
    torch.set_num_threads(1)
    tensors, check = checkpoint(), hashlib.sha256()
    masker = Masker(Architecture({"model_type": "qwen3_vl"}), frozenset({"language"}), RATIOS, threads=threads)
    stages = []
    for ratio in RATIOS:
        began, busy = time.perf_counter(), time.process_time()
        reports: list[MaskReport] = []
        stream = (
            searched(tensors, ratio) if kind == "search" else (one for _, one in masker.stream(tensors, ratio, reports))
        )
        found = list(stream)
        stages.append({"seconds": time.perf_counter() - began, "busy": time.process_time() - busy})
        for one in found:
            check.update(one.view(torch.uint8).numpy().data)
    entries = MATRICES * ROWS * COLUMNS
    print(json.dumps({"stages": stages, "entries": entries, "bytes": 2 * entries, "check": check.hexdigest()}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
