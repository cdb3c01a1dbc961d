import math
from typing import Any

import numpy as np
import pytest

from masters_ray.records import StepMetrics
from masters_ray.report.instabilities import (
    Drift,
    Spike,
    collapse,
    find_spikes,
    moving_median,
    rise_of_zero_std,
    spikes,
)
from tests.builders import step


def steps(**columns: Any) -> list[StepMetrics]:
    """columns: field → values of all steps."""
    rows = zip(*columns.values(), strict=True)
    return [step(number, **dict(zip(columns, row, strict=True))) for number, row in enumerate(rows, 1)]


def test_a_moving_median_is_that_of_the_finite_values_around() -> None:
    values = np.array([1.0, 2.0, math.nan, 100.0, 5.0, 6.0, math.inf])
    assert moving_median(values).tolist() == [1.5, 2.0, 3.5, 5.5, 6.0, 6.0, 5.5]
    assert moving_median(np.array([])).size == 0 and math.isnan(moving_median(np.array([math.nan]))[0])


def test_a_spike_is_far_from_its_neighbours_whatever_the_trend() -> None:
    falling = 10.0 / np.arange(1, 101)
    falling[[20, 60]] = 5.0
    assert np.flatnonzero(spikes(falling)).tolist() == [20, 60]
    assert not spikes(10.0 / np.arange(1, 101)).any() and not spikes(np.linspace(0, 1e-3, 50)).any()
    assert not spikes(np.zeros(9)).any() and not spikes(np.full(9, math.nan)).any()


def test_a_metric_that_is_usually_0_has_no_spikes_and_of_many_the_furthest_count() -> None:
    waits = np.where(np.arange(40) % 4, 0.0, 30.0)
    assert not spikes(waits).any()
    noisy = np.ones(60)
    noisy[::6] = 10.0 * np.arange(1, 11)
    assert noisy[spikes(noisy)].tolist() == [50.0, 60.0, 70.0, 80.0, 90.0, 100.0]


def test_spikes_of_neighbouring_steps_are_one_instability() -> None:
    losses, norms = np.ones(60), np.ones(60)
    losses[[9, 12]], norms[11], norms[40], norms[43:46] = [7.0, 9.0], 50.0, math.nan, 3.0
    first, second = find_spikes(steps(loss=losses, grad_norm=norms))
    assert first == Spike(10, 13, [("loss", 9.0, 1.0, 13), ("gradient norm", 50.0, 1.0, 12)], [])
    assert (second.first, second.last, second.peaks[0][0], second.peaks[0][2]) == (41, 41, "gradient norm", 1.0)
    assert second.lasting == ["gradient norm"]
    losses[59] = 9.0
    assert find_spikes(steps(loss=losses))[-1].lasting is None, "no step follows"
    assert find_spikes(steps(loss=np.ones(60))) == find_spikes([]) == []


@pytest.mark.parametrize(
    ("rewards", "found"),
    [
        ([0.8] * 20 + [0.3] * 20, Drift(21, 0.8, 0.3)),
        ([0.8] * 20 + [0.5] * 20, None),
        ([0.8] * 20 + [0.1] + [0.8] * 20, None),
        ([0.05] * 20 + [0.01] * 20, None),
        ([], None),
    ],
)
def test_a_reward_that_falls_to_less_than_half_has_collapsed(rewards: list[float], found: Drift | None) -> None:
    assert collapse(steps(accuracy_reward=rewards)) == found


@pytest.mark.parametrize(
    ("shares", "found"),
    [
        ([0.2] * 20 + [0.9] * 20, Drift(21, 0.2, 0.9)),
        ([0.2] * 20 + [0.9] * 20 + [0.2] * 20, None),
        ([0.4] * 20 + [0.55] * 20, None),
        ([0.9] * 40, None),
        ([], None),
    ],
)
def test_groups_without_differing_rewards_that_become_the_most_are_told(
    shares: list[float], found: Drift | None
) -> None:
    assert rise_of_zero_std(steps(zero_std_groups=shares)) == found
