"""Intervals for what studies compare. All intervals are 95 % and two-sided."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from masters_ray.evaluate import wilson

_RESAMPLES = 2000
_SEED = 0
_T = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)
"""Student's t at 0.975 for 1, 2, … degrees of freedom."""
_NORMAL = 1.960


@dataclass(frozen=True, kw_only=True)
class Mean:
    """A mean with its interval; NaN bounds where there is one value only."""

    value: float
    low: float
    high: float
    n: int

    @property
    def settled(self) -> bool:
        """Whether the interval leaves 0 out."""
        return self.low > 0 or self.high < 0


def mean(values: Sequence[float]) -> Mean:
    """Of independent values, by Student's t. Raises ValueError without values.

    Example: ``[1.0, 2.0, 3.0]`` is 2 ± 4.303 / √3.
    """
    if not values:
        raise ValueError("a mean needs at least one value")
    value, n = sum(values) / len(values), len(values)
    if n == 1:
        return Mean(value=value, low=math.nan, high=math.nan, n=1)
    deviation = math.sqrt(sum((one - value) ** 2 for one in values) / (n - 1))
    half = (_T[n - 2] if n - 2 < len(_T) else _NORMAL) * deviation / math.sqrt(n)
    return Mean(value=value, low=value - half, high=value + half, n=n)


def resampled_mean(values: Sequence[float], question_of: Sequence[str] | None = None) -> Mean:
    """Of many values of any distribution, by resampling them; those of one question are drawn together.

    question_of: of each value; without it each is a question of its own. ``n`` is the number of questions. Raises
    ValueError without values.
    """
    if not values:
        raise ValueError("a mean needs at least one value")
    array = np.asarray(values, float)
    _, index = np.unique(np.arange(len(array)) if question_of is None else np.asarray(question_of), return_inverse=True)
    sums, counts = np.bincount(index, weights=array), np.bincount(index)
    draws = np.random.default_rng(_SEED).integers(len(sums), size=(_RESAMPLES, len(sums)))
    low, high = np.quantile(sums[draws].sum(1) / counts[draws].sum(1), [0.025, 0.975])
    return Mean(value=float(array.mean()), low=float(low), high=float(high), n=len(sums))


def resampled_share(values: Sequence[int], question_of: Sequence[str]) -> Mean:
    """``resampled_mean`` of values that are 0 or 1. Where all are the same, resampling would be certain of it: then the
    interval is Wilson's for as many questions. Raises ValueError without values.

    Example: 20 ones on 10 questions give 1.0 with 0.722 … 1.0.
    """
    found = resampled_mean(values, question_of)
    if 0 < found.value < 1:
        return found
    rate = wilson(round(found.value) * found.n, found.n)
    return Mean(value=rate.value, low=rate.low, high=rate.high, n=rate.n)


def as_json(record: Any) -> Any:
    """A dataclass as values of JSON, which has no NaN: null stands for a number that is none."""
    return _finite(dataclasses.asdict(record))


def _finite(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _finite(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [_finite(value) for value in tree]
    return None if isinstance(tree, float) and not math.isfinite(tree) else tree


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How two judges of the same answers agree."""

    both_right: int
    """Answers that both call right; the first judge's word comes first below."""
    right_wrong: int
    wrong_right: int
    both_wrong: int
    share: float
    """Of answers on which they say the same."""
    kappa: Mean
    """Cohen's κ: agreement beyond what two judges with these rates reach by chance; NaN where that is everything."""


def agreement(first: Sequence[int], second: Sequence[int], question_of: Sequence[int]) -> Agreement:
    """Of verdicts 0 and 1 on the same answers. The interval resamples whole questions, since the answers to one are
    alike. Raises ValueError without answers."""
    a, b = np.asarray(first), np.asarray(second)
    if not len(a):
        raise ValueError("agreement needs at least one answer that both judged")
    counts = _confusion(a, b)
    _, index = np.unique(np.asarray(question_of), return_inverse=True)
    by_question = np.zeros((index.max() + 1, 4))
    np.add.at(by_question, (index, 2 * (1 - a) + (1 - b)), 1)
    draws = np.random.default_rng(_SEED).integers(len(by_question), size=(_RESAMPLES, len(by_question)))
    drawn = np.array([_kappa(by_question[draw].sum(0)) for draw in draws])
    finite = drawn[np.isfinite(drawn)]
    low, high = np.quantile(finite, [0.025, 0.975]) if len(finite) else (math.nan, math.nan)
    return Agreement(
        both_right=int(counts[0]),
        right_wrong=int(counts[1]),
        wrong_right=int(counts[2]),
        both_wrong=int(counts[3]),
        share=float((counts[0] + counts[3]) / counts.sum()),
        kappa=Mean(value=_kappa(counts), low=float(low), high=float(high), n=len(a)),
    )


def _confusion(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """[both 1, first only, second only, both 0]"""
    return np.bincount(2 * (1 - a) + (1 - b), minlength=4).astype(float)


def _kappa(counts: np.ndarray) -> float:
    total = counts.sum()
    observed = (counts[0] + counts[3]) / total
    first, second = (counts[0] + counts[1]) / total, (counts[0] + counts[2]) / total
    chance = first * second + (1 - first) * (1 - second)
    return float((observed - chance) / (1 - chance)) if chance < 1 else math.nan
