"""Statistics of studies: means and resampling with two-sided 95 % intervals."""

import math
from collections.abc import Callable, Sequence

import numpy as np

from masters_ray.evaluate import Interval, wilson

_T = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)
"""Student's t at 0.975 for 1, 2, … 30 degrees of freedom; beyond, the normal distribution's is close enough."""


def mean(values: Sequence[float]) -> Interval:
    """Returns the mean of one or more independent values with Student's interval."""
    value, n = sum(values) / len(values), len(values)
    if n == 1:
        return Interval(value=value, low=math.nan, high=math.nan, n=1)
    half = (_T[n - 2] if n - 2 < len(_T) else 1.960) * float(np.std(values, ddof=1)) / math.sqrt(n)
    return Interval(value=value, low=value - half, high=value + half, n=n)


def resampled_mean(values: Sequence[float], question_of: Sequence[str] | None = None) -> Interval:
    """Returns the mean of values of any distribution with a bootstrap interval, which resamples whole questions; NaN
    without values. question_of: question of each value; None: each value has its own. ``n`` counts questions."""
    columns = np.stack([np.asarray(values, float), np.ones(len(values))], axis=1)
    questions = range(len(values)) if question_of is None else question_of
    return resampled(columns, questions, lambda sums: sums[0] / sums[1])


def resampled_share(values: Sequence[int], question_of: Sequence[str]) -> Interval:
    """``resampled_mean`` of values 0 and 1. If all are equal, where resampling gives an empty interval, the interval is
    Wilson's for that number of questions."""
    found = resampled_mean(values, question_of)
    return wilson(round(found.value) * found.n, found.n) if found.value in (0, 1) else found


def resampled(
    columns: np.ndarray, question_of: Sequence[str] | Sequence[int], statistic: Callable[[np.ndarray], float]
) -> Interval:
    """Returns a statistic of the columns' sums; columns: [values, columns]. The bootstrap draws whole questions with
    replacement, with a fixed seed; draws whose statistic is NaN do not count."""
    if not len(columns):
        return Interval(value=math.nan, low=math.nan, high=math.nan, n=0)
    _, index = np.unique(np.asarray(question_of), return_inverse=True)
    sums = np.zeros((index.max() + 1, columns.shape[1]))
    np.add.at(sums, index, columns)
    draws = np.random.default_rng(0).integers(len(sums), size=(2000, len(sums)))
    drawn = np.array([statistic(sums[draw].sum(0)) for draw in draws])
    finite = drawn[np.isfinite(drawn)]
    low, high = np.quantile(finite, [0.025, 0.975]) if len(finite) else (math.nan, math.nan)
    return Interval(value=float(statistic(columns.sum(0))), low=float(low), high=float(high), n=len(sums))
