"""When which mask ratio holds (METHOD 2): the stages of a run and the share of the data that each one sees."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A stretch of the run with one masked teacher."""

    index: int
    """Counts from 0."""
    ratio: float
    """Fraction of every masked matrix that is zero."""


def stages(max_ratio: float, step: float) -> list[Stage]:
    """Ratios max_ratio, max_ratio − step, …, 0: M = max_ratio / step + 1 equal stages (METHOD 2, eq. of the schedule).

    Example: ``stages(0.2, 0.05)`` has the ratios 0.2, 0.15, 0.1, 0.05, 0.0.
    """
    steps = round(max_ratio / step)
    return [Stage(index=i, ratio=round(max(0.0, max_ratio - i * step), 10)) for i in range(steps + 1)]


def split(rows: int, count: int, stage_data: Literal["share", "all"]) -> list[range]:
    """The positions of each of ``count`` stages: consecutive shares whose sizes differ by at most one, or all."""
    if stage_data == "all":
        return [range(rows)] * count
    bounds = [rows * i // count for i in range(count + 1)]
    return [range(low, high) for low, high in itertools.pairwise(bounds)]
