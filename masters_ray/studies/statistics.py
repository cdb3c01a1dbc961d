"""Statistics of studies: means and agreements with two-sided 95 % intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from masters_ray.evaluate import Interval, kappa, wilson

_RESAMPLES = 2000
_SEED = 0
_T = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)
"""Student's t at 0.975 for 1, 2, … degrees of freedom."""
_NORMAL = 1.960


def mean(values: Sequence[float]) -> Interval:
    """Returns the mean of independent values with Student's interval. Raises ValueError without values.

    Example: ``[1.0, 2.0, 3.0]`` gives 2 ± 4.303 / √3.
    """
    if not values:
        raise ValueError("a mean needs at least one value")
    value, n = sum(values) / len(values), len(values)
    if n == 1:
        return Interval(value=value, low=math.nan, high=math.nan, n=1)
    half = (_T[n - 2] if n - 2 < len(_T) else _NORMAL) * float(np.std(values, ddof=1)) / math.sqrt(n)
    return Interval(value=value, low=value - half, high=value + half, n=n)


def resampled_mean(values: Sequence[float], question_of: Sequence[str] | None = None) -> Interval:
    """Returns the mean of values of any distribution with a bootstrap interval, which resamples whole questions.

    question_of: question of each value; None: each value has its own. ``n`` is the number of questions. Raises
    ValueError without values.
    """
    columns = np.stack([np.asarray(values, float), np.ones(len(values))], axis=1)
    questions = range(len(values)) if question_of is None else question_of
    return _resampled(columns, questions, lambda sums: sums[0] / sums[1])


def resampled_share(values: Sequence[int], question_of: Sequence[str]) -> Interval:
    """``resampled_mean`` of values 0 and 1. If all are equal, where resampling gives an empty interval, the interval is
    Wilson's for that number of questions. Raises ValueError without values.

    Example: 20 ones on 10 questions give 1.0 with 0.722 … 1.0.
    """
    found = resampled_mean(values, question_of)
    return found if 0 < found.value < 1 else wilson(round(found.value) * found.n, found.n)


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """The agreement of two judges on the same answers."""

    both_right: int
    """Answers that both call right; ``right_wrong``: the first judge says right, the second wrong."""
    right_wrong: int
    wrong_right: int
    both_wrong: int
    share: float
    """Fraction of the answers on which both agree."""
    kappa: Interval
    """Cohen's κ (``evaluate.kappa``); n counts questions."""


def agreement(first: Sequence[int], second: Sequence[int], question_of: Sequence[int]) -> Agreement:
    """Returns the agreement of verdicts 0 and 1 on the same answers. κ's interval resamples whole questions, since the
    answers to a question depend on each other. Raises ValueError without answers."""
    cells = np.eye(4)[[2 * (1 - one) + (1 - other) for one, other in zip(first, second, strict=True)]]
    both_right, right_wrong, wrong_right, both_wrong = (int(count) for count in cells.sum(0))
    return Agreement(
        both_right=both_right,
        right_wrong=right_wrong,
        wrong_right=wrong_right,
        both_wrong=both_wrong,
        share=(both_right + both_wrong) / len(first),
        kappa=_resampled(
            cells, question_of, lambda sums: kappa(sums.sum(), sums[0] + sums[1], sums[0] + sums[2], sums[0] + sums[3])
        ),
    )


def _resampled(
    columns: np.ndarray, question_of: Sequence[str] | Sequence[int], statistic: Callable[[np.ndarray], float]
) -> Interval:
    """Returns a statistic of the columns' sums; columns: [values, columns]. The bootstrap draws whole questions with
    replacement, with a fixed seed; draws whose statistic is NaN do not count."""
    _, index = np.unique(np.asarray(question_of), return_inverse=True)
    sums = np.zeros((index.max() + 1, columns.shape[1]))
    np.add.at(sums, index, columns)
    draws = np.random.default_rng(_SEED).integers(len(sums), size=(_RESAMPLES, len(sums)))
    drawn = np.array([statistic(sums[draw].sum(0)) for draw in draws])
    finite = drawn[np.isfinite(drawn)]
    low, high = np.quantile(finite, [0.025, 0.975]) if len(finite) else (math.nan, math.nan)
    return Interval(value=float(statistic(columns.sum(0))), low=float(low), high=float(high), n=len(sums))
