"""Seconds of things that are done in turn, and how fast the processor multiplies meanwhile."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median

import torch

from masters_ray.learner import work

_SIDES = (1024, 2048)


def in_turn(actions: Mapping[str, Callable[[], object]], repeats: int, warm_ups: int = 1) -> dict[str, list[float]]:
    """Seconds of each action: A B A B …, so that whatever slows the machine down slows all of them."""
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    for repeat in range(warm_ups + repeats):
        for name, action in actions.items():
            started = time.perf_counter()
            action()
            if repeat >= warm_ups:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """Repeat by repeat."""
    return [one / other for one, other in zip(above, below, strict=True)]


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and most."""
    return {"median": median(values), "least": min(values), "most": max(values)}


def matmul_rate() -> float:
    """Operations per second of float32 products of square matrices, at the side that this processor likes better."""
    return max(work.matmul_rate(torch.device("cpu"), torch.float32, side) for side in _SIDES)
