"""Statistics of studies: means and resampling with two-sided 95 % intervals."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import NormalDist

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


def resampled_mean(
    values: Sequence[float], question_of: Sequence[str] | Sequence[int] | None = None, comparisons: int = 1
) -> Interval:
    """Returns the mean of values of any distribution with a bootstrap interval, which resamples whole questions; NaN
    without values. question_of: question of each value; None: each value has its own. ``n`` counts questions.
    comparisons: as for ``resampled``."""
    columns = np.stack([np.asarray(values, float), np.ones(len(values))], axis=1)
    questions = range(len(values)) if question_of is None else question_of
    return resampled(columns, questions, lambda sums: sums[0] / sums[1], comparisons)


def resampled_share(values: Sequence[int], question_of: Sequence[str] | Sequence[int], least: float = 0.0) -> Interval:
    """``resampled_mean`` of marks, 0 and 1, or of differences of marks, whose ``least`` is −1. If all questions are
    alike, where resampling gives an empty interval, Wilson's of none says how many others may be different. Example:
    ten times 0 gives 0 … 0.278, as differences −0.278 … 0.278."""
    found = resampled_mean(values, question_of)
    if found.low < found.high or not found.n:
        return found
    other = wilson(0, found.n).high
    return replace(found, low=max(least, found.value - other), high=min(1.0, found.value + other))


def questions_needed(found: Interval, comparisons: int = 1) -> float:
    """Returns how many questions would in four of five samples put the interval of a difference beside 0, if the true
    difference is the measured one: an interval's width falls with the root of the number. Infinite for no difference.
    Example: 0.1 with bounds 0.2 apart on 50 questions gives 102."""
    bound, power = NormalDist().inv_cdf(1 - 0.025 / comparisons), NormalDist().inv_cdf(0.8)
    needed = (found.high - found.low) / 2 * (bound + power) / bound
    return found.n * (needed / found.value) ** 2 if found.value else math.inf


def alike_needed(width: float) -> float:
    """Returns how many questions that are all alike make an interval of ``resampled_share`` reach only so far from its
    value: n where Wilson's bound of none, z² / (n + z²), is the width. Example: 0.05 gives 73."""
    z = NormalDist().inv_cdf(0.975)
    return z**2 * (1 - width) / width if width else math.inf


def resampled(
    columns: np.ndarray,
    question_of: Sequence[str] | Sequence[int],
    statistic: Callable[[np.ndarray], float],
    comparisons: int = 1,
) -> Interval:
    """Returns a statistic of the columns' sums; columns: [values, columns]. The bootstrap draws whole questions with
    replacement, with a fixed seed; draws whose statistic is NaN do not count. comparisons: number of intervals that are
    to hold all at once in 95 % (after Bonferroni)."""
    if not len(columns):
        return Interval(value=math.nan, low=math.nan, high=math.nan, n=0)
    _, index = np.unique(np.asarray(question_of), return_inverse=True)
    sums = np.zeros((index.max() + 1, columns.shape[1]))
    np.add.at(sums, index, columns)
    draws = np.random.default_rng(0).integers(len(sums), size=(2000, len(sums)))
    drawn = np.array([statistic(sums[draw].sum(0)) for draw in draws])
    finite, tail = drawn[np.isfinite(drawn)], 0.025 / comparisons
    low, high = np.quantile(finite, [tail, 1 - tail]) if len(finite) else (math.nan, math.nan)
    return Interval(value=float(statistic(columns.sum(0))), low=float(low), high=float(high), n=len(sums))
