"""Finds what was unstable while the student learned."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from masters_ray.records import StepMetrics

_WATCHED = {"loss": "loss", "jsd": "JSD", "kl": "KL", "grad_norm": "gradient norm"}
_NEIGHBOURS = 5  # steps from the last of an instability within which the next belongs to it


class Spike(NamedTuple):
    first: int  # step, like ``last``
    last: int
    peaks: list[tuple[str, float, float, int]]  # (name, largest value, median around it, step) of each
    lasting: list[str] | None = None
    """Those whose median over the next _NEIGHBOURS steps, and last value there, are more than twice that around the
    peak; None: no step follows."""


class Drift(NamedTuple):
    step: int  # the first at which the change has happened
    before: float  # moving median, like ``after``
    after: float


def column(metrics: Sequence[StepMetrics], field: str) -> np.ndarray:
    """float [steps]"""
    return np.array([getattr(row, field) for row in metrics], float)


def _moving(middle: Callable[..., Any], values: np.ndarray) -> np.ndarray:
    """Returns the ``middle`` of the finite values around each value: of a twentieth of all, at least 5, at most 101;
    NaN without any."""
    if not len(values):
        return values
    size = min(101, max(5, len(values) // 20)) | 1
    padded = np.pad(values, size // 2, constant_values=np.nan)
    around = np.ma.masked_invalid(np.lib.stride_tricks.sliding_window_view(padded, size))
    return np.ma.filled(middle(around, axis=1), np.nan)


moving_median, moving_mean = partial(_moving, np.ma.median), partial(_moving, np.ma.mean)


def spikes(values: np.ndarray) -> np.ndarray:
    """Returns which values are outliers, bool: further from their moving median than three times its size, ten times
    the usual distance, and half of the usual size; of more than a tenth of all values, the furthest alone."""
    finite = np.isfinite(values)
    if not finite.any() or not (usual := np.median(np.abs(values[finite]))):
        return np.zeros(len(values), bool)
    median = moving_median(values)
    away = np.where(finite, np.abs(values - median), 0.0)
    found = (away > 3 * np.abs(median)) & (away > 10 * np.median(away[finite])) & (away > 0.5 * usual)
    most = max(3, len(values) // 10)
    return found & (away >= np.sort(np.where(found, away, 0.0))[-most:][0])


def find_spikes(metrics: Sequence[StepMetrics]) -> list[Spike]:
    """Returns the spikes of loss, JSD, KL and gradient norm, and their values that are not finite, as instabilities of
    neighbouring steps."""
    columns = {name: column(metrics, field) for field, name in _WATCHED.items()}
    odd = {name: spikes(values) | ~np.isfinite(values) for name, values in columns.items()}
    together: list[list[int]] = []
    for index in np.flatnonzero(np.any(list(odd.values()), axis=0)) if metrics else ():
        if together and metrics[index].step - metrics[together[-1][-1]].step <= _NEIGHBOURS:
            together[-1].append(index)
        else:
            together.append([index])
    medians = {name: moving_median(values) for name, values in columns.items()}
    found = []
    for steps in together:
        peaks, lasting, after = [], list[str](), slice(steps[-1] + 1, steps[-1] + 1 + _NEIGHBOURS)
        for name, values in columns.items():
            if of := [index for index in steps if odd[name][index]]:
                peak = max(of, key=lambda index: np.nan_to_num(abs(values[index]), nan=np.inf))
                around = float(medians[name][peak])
                peaks.append((name, float(values[peak]), around, metrics[peak].step))
                near = np.abs(values[after])
                if len(near) and not min(np.median(near), near[-1]) <= 2 * abs(around):
                    lasting.append(name)
        told = lasting if len(metrics[after]) else None
        found.append(Spike(metrics[steps[0]].step, metrics[steps[-1]].step, peaks, told))
    return found


def collapse(metrics: Sequence[StepMetrics]) -> Drift | None:
    """Returns where the accuracy reward fell below half of what it was before; None: nowhere."""
    median = moving_median(column(metrics, "accuracy_reward"))
    best = np.fmax.accumulate(median) if metrics else median
    return _first(metrics, median, (best >= 0.1) & (median < best / 2), best)


def rise_of_zero_std(metrics: Sequence[StepMetrics]) -> Drift | None:
    """Returns where groups without differing rewards had become more than half of all, and a quarter of all more than
    in the first tenth of the run; None: nowhere, or not to the end."""
    median = moving_median(column(metrics, "zero_std_groups"))
    start = np.full(len(median), np.median(median[: len(median) // 10 + 1]) if metrics else np.nan)
    risen = (median > 0.5) & (median > start + 0.25)
    return _first(metrics, median, risen & risen[-1:], start)


def _first(metrics: Sequence[StepMetrics], values: np.ndarray, at: np.ndarray, before: np.ndarray) -> Drift | None:
    return next((Drift(metrics[i].step, float(before[i]), float(values[i])) for i in np.flatnonzero(at)), None)
