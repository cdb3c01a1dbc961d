from __future__ import annotations

import math

import pytest

from masters_ray.files import as_json
from masters_ray.studies.statistics import agreement, mean, resampled_mean, resampled_share


def test_the_interval_of_three_values_is_students() -> None:
    found = mean([1.0, 2.0, 3.0])
    assert (found.value, found.n) == (2.0, 3)
    assert found.high - found.value == pytest.approx(4.303 / math.sqrt(3))
    assert not found.settled or found.low > 0
    assert mean([5.0, 5.1, 4.9]).settled


def test_one_value_has_no_interval_and_none_is_refused() -> None:
    assert math.isnan(mean([1.0]).low)
    assert not mean([1.0]).settled
    with pytest.raises(ValueError, match="at least one"):
        mean([])


def test_resampling_gives_the_interval_of_the_normal_distribution_for_many_values() -> None:
    values = [float(i % 2) for i in range(400)]
    found = resampled_mean(values)
    assert found.value == 0.5
    assert found.high - found.low == pytest.approx(2 * 1.96 * 0.5 / 20, rel=0.1)


def test_values_of_one_question_are_resampled_together() -> None:
    values = [float(i % 2) for i in range(400)]
    apart, twice = resampled_mean(values), resampled_mean(values * 2, [str(i) for i in range(400)] * 2)
    assert (twice.value, twice.n) == (apart.value, 400)
    assert twice.high - twice.low == pytest.approx(apart.high - apart.low, rel=0.1), "two copies tell no more than one"


def test_a_share_of_all_or_none_is_not_certain() -> None:
    questions = [str(index // 2) for index in range(20)]
    all_right, none_right = resampled_share([1] * 20, questions), resampled_share([0] * 20, questions)
    assert (all_right.value, all_right.high, all_right.n) == (1.0, 1.0, 10)
    assert all_right.low == pytest.approx(0.722, abs=1e-3), "Wilson's, for 10 of 10"
    assert (none_right.value, none_right.low) == (0.0, 0.0)
    assert none_right.high == pytest.approx(0.278, abs=1e-3)
    some = [1, 0] * 10
    assert resampled_share(some, questions) == resampled_mean(some, questions)


def test_json_has_null_where_a_number_is_none() -> None:
    assert as_json(mean([1.5])) == {"value": 1.5, "low": None, "high": None, "n": 1}


def test_kappa_by_hand() -> None:
    """20 both right, 5 first only, 10 second only, 15 both wrong: observed 0.7, chance 0.5·0.6 + 0.5·0.4 = 0.5."""
    first = [1] * 25 + [0] * 25
    second = [1] * 20 + [0] * 5 + [1] * 10 + [0] * 15
    found = agreement(first, second, list(range(50)))
    assert (found.both_right, found.right_wrong, found.wrong_right, found.both_wrong) == (20, 5, 10, 15)
    assert found.share == pytest.approx(0.7)
    assert found.kappa.value == pytest.approx(0.4)
    assert found.kappa.low < 0.4 < found.kappa.high


def test_answers_to_one_question_count_together_in_the_interval() -> None:
    first, second = [1, 0] * 40, [1, 0, 0, 1] * 20
    alone = agreement(first, second, list(range(80))).kappa
    together = agreement(first, second, [index // 8 for index in range(80)]).kappa
    assert together.high - together.low < alone.high - alone.low, "every question here has the same mixture"
    pairs = agreement(first, second, [0 if a == b else 1 for a, b in zip(first, second, strict=True)]).kappa
    assert pairs.high - pairs.low > alone.high - alone.low, "two questions, of which one is all agreement"


def test_judges_that_always_say_the_same_one_thing_have_no_kappa() -> None:
    found = agreement([1, 1], [1, 1], [0, 1])
    assert found.share == 1.0
    assert math.isnan(found.kappa.value)
