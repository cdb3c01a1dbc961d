"""Which groups of an optimizer step go into which micro-batch of which worker."""

from __future__ import annotations

from collections.abc import Sequence


def micro_batches(tokens: Sequence[int], workers: int, budget: int) -> list[list[list[int]]]:
    """Rounds of one micro-batch per worker: ``result[round][worker]`` are indices of groups, in their order.

    tokens: what each group takes in a sequence. A micro-batch holds at most ``budget`` tokens, or one group that alone
    has more. There are as few rounds as longest-first packing finds; the micro-batches of a round are the ones most
    alike, so that workers wait little for each other. With fewer groups than workers some micro-batches are empty.

    Example: ``micro_batches([7, 5, 5, 3], workers=2, budget=10)`` is ``[[[0, 3], [1, 2]]]``.
    """
    if not tokens:
        return []
    rounds = max(1, -(-sum(min(one, budget) for one in tokens) // (workers * budget)))
    while True:
        bins = _longest_first(tokens, workers * rounds)
        if all(len(one) == 1 or sum(tokens[index] for index in one) <= budget for one in bins if one):
            break
        rounds += 1
    bins.sort(key=lambda one: (-sum(tokens[index] for index in one), one))
    return [bins[start : start + workers] for start in range(0, len(bins), workers)]


def _longest_first(tokens: Sequence[int], count: int) -> list[list[int]]:
    """``count`` bins, each group put where there is least so far, the longest first."""
    bins: list[list[int]] = [[] for _ in range(count)]
    loads = [0] * count
    for index in sorted(range(len(tokens)), key=lambda index: -tokens[index]):
        least = loads.index(min(loads))
        bins[least].append(index)
        loads[least] += tokens[index]
    return [sorted(one) for one in bins]
