"""The small form of every benchmark, MASTERS_BENCH_SMALL=1: each part at sizes that take seconds, so that tests run it.

Figures of the small form mean nothing.
"""

from __future__ import annotations

import os
from typing import TypeVar

T = TypeVar("T")

SMALL = os.environ.get("MASTERS_BENCH_SMALL") == "1"


def at(full: T, small: T) -> T:
    """The size to measure at."""
    return small if SMALL else full
