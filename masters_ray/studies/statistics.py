"""Means and agreements with intervals, for what studies compare. All intervals are 95 % and two-sided."""

from __future__ import annotations

import math
from collections.abc import Sequence
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
    """Mean of independent values, with Student's interval. Raises ValueError without values.

    Example: ``[1.0, 2.0, 3.0]`` gives 2 ± 4.303 / √3.
    """
    if not values:
        raise ValueError("a mean needs at least one value")
    value, n = sum(values) / len(values), len(values)
    if n == 1:
        return Interval(value=value, low=math.nan, high=math.nan, n=1)
    deviation = math.sqrt(sum((one - value) ** 2 for one in values) / (n - 1))
    half = (_T[n - 2] if n - 2 < len(_T) else _NORMAL) * deviation / math.sqrt(n)
    return Interval(value=value, low=value - half, high=value + half, n=n)


def resampled_mean(values: Sequence[float], question_of: Sequence[str] | None = None) -> Interval:
    """Mean of values of any distribution, with an interval by resampling; values of one question are drawn together.

    question_of: of each value; None: each is a question of its own. ``n`` is the number of questions. Raises ValueError
    without values.
    """
    if not values:
        raise ValueError("a mean needs at least one value")
    array = np.asarray(values, float)
    _, index = np.unique(np.arange(len(array)) if question_of is None else np.asarray(question_of), return_inverse=True)
    sums, counts = np.bincount(index, weights=array), np.bincount(index)
    draws = _draws(len(sums))
    low, high = np.quantile(sums[draws].sum(1) / counts[draws].sum(1), [0.025, 0.975])
    return Interval(value=float(array.mean()), low=float(low), high=float(high), n=len(sums))


def resampled_share(values: Sequence[int], question_of: Sequence[str]) -> Interval:
    """``resampled_mean`` of values 0 and 1. Where all are the same, resampling would be certain of it: then the
    interval is Wilson's for as many questions. Raises ValueError without values.

    Example: 20 ones on 10 questions give 1.0 with 0.722 … 1.0.
    """
    found = resampled_mean(values, question_of)
    return found if 0 < found.value < 1 else wilson(round(found.value) * found.n, found.n)


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Two judges on the same answers."""

    both_right: int
    """Answers that both call right; in the names below the first judge comes first."""
    right_wrong: int
    wrong_right: int
    both_wrong: int
    share: float
    """Fraction of the answers on which both say the same."""
    kappa: Interval
    """Cohen's κ (``evaluate.kappa``)."""


def agreement(first: Sequence[int], second: Sequence[int], question_of: Sequence[int]) -> Agreement:
    """Of verdicts 0 and 1 on the same answers. The interval resamples whole questions, since the answers to one are
    alike. Raises ValueError without answers."""
    a, b = np.asarray(first), np.asarray(second)
    if not len(a):
        raise ValueError("agreement needs at least one answer that both judged")
    _, index = np.unique(np.asarray(question_of), return_inverse=True)
    by_question = np.zeros((index.max() + 1, 4))  # both right, first only, second only, both wrong
    np.add.at(by_question, (index, 2 * (1 - a) + (1 - b)), 1)
    counts = by_question.sum(0)
    drawn = np.array([_kappa(by_question[draw].sum(0)) for draw in _draws(len(by_question))])
    finite = drawn[np.isfinite(drawn)]
    low, high = np.quantile(finite, [0.025, 0.975]) if len(finite) else (math.nan, math.nan)
    return Agreement(
        both_right=int(counts[0]),
        right_wrong=int(counts[1]),
        wrong_right=int(counts[2]),
        both_wrong=int(counts[3]),
        share=float((counts[0] + counts[3]) / counts.sum()),
        kappa=Interval(value=_kappa(counts), low=float(low), high=float(high), n=len(a)),
    )


def _draws(questions: int) -> np.ndarray:
    """[_RESAMPLES, questions] indices, drawn with replacement; the same for the same number of questions."""
    return np.random.default_rng(_SEED).integers(questions, size=(_RESAMPLES, questions))


def _kappa(counts: np.ndarray) -> float:
    return float(kappa(counts.sum(), counts[0] + counts[1], counts[0] + counts[2], counts[0] + counts[3]))
