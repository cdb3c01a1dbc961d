"""Draws the order of a mixture's questions before any is read, and how many each source gives."""

import random
from array import array
from collections.abc import Sequence

import numpy as np

from masters_ray.config import DataSource


def seeded(count: int, seed: int) -> np.ndarray:
    """Returns the numbers below ``count``, at most 2^32, shuffled by ``seed``; uint32 [count]."""
    numbers = array("I", range(count))
    random.Random(seed).shuffle(numbers)
    return np.frombuffer(numbers, np.uint32)


def balanced(order: np.ndarray, kinds: np.ndarray | None) -> np.ndarray:
    """Returns ``order`` rearranged so that any beginning of it holds the kinds in turn while they last. kinds: the kind
    of each question as a number that sorts like its name; None: all are of one kind."""
    if kinds is None:
        return order
    own = kinds[order]
    by_kind = np.argsort(own, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(own[by_kind]) != 0])
    turns = np.empty(len(order), np.int64)
    turns[by_kind] = np.arange(len(order)) - np.repeat(starts, np.diff(np.r_[starts, len(order)]))
    return order[np.lexsort((np.arange(len(order)), own, turns))]


def quotas(sources: Sequence[DataSource], sizes: Sequence[int], total: int | None) -> list[int]:
    """Returns how many questions each source gives. sizes: of the sources; total: most of all together.

    With weights the shares are exact but for a question, and the scarcest source limits all. Example: weights 1 and 3,
    sizes 50 and 90: 30 and 90.
    """
    most = [min(size, one.rows or size) for one, size in zip(sources, sizes, strict=True)]
    weights = [float(one.weight or n) for one, n in zip(sources, most, strict=True)]
    whole = sum(weights)
    if not whole:
        return most
    scale = min(n / weight for n, weight in zip(most, weights, strict=True) if weight)
    if total is not None:
        scale = min(scale, total / whole)
    exact = [scale * weight for weight in weights]
    found = [int(share + 1e-9) for share in exact]
    left = min(round(sum(exact)), total or sum(most)) - sum(found)
    for place in sorted(range(len(found)), key=lambda one: found[one] - exact[one])[: max(0, left)]:
        found[place] += found[place] < most[place]
    return found
