import random

import pytest

from masters_ray.batching import micro_batches


def test_the_worked_example_of_the_docstring() -> None:
    assert micro_batches([7, 5, 5, 3], workers=2, budget=10) == [[[0, 3], [1, 2]]]


@pytest.mark.parametrize("workers", [1, 2, 3, 8])
@pytest.mark.parametrize("budget", [100, 700, 5000])
def test_every_group_stands_in_one_micro_batch_within_the_budget(workers: int, budget: int) -> None:
    draw = random.Random(budget + workers)
    tokens = [draw.randint(20, 300) for _ in range(64)]
    rounds = micro_batches(tokens, workers, budget)
    assert all(len(one) == workers for one in rounds)
    assert sorted(index for one in rounds for batch in one for index in batch) == list(range(64))
    assert all(sum(tokens[index] for index in batch) <= budget or len(batch) == 1 for one in rounds for batch in one)


def test_workers_of_a_round_have_about_the_same_to_do() -> None:
    draw = random.Random(0)
    tokens = [draw.randint(300, 1500) for _ in range(256)]
    for one in micro_batches(tokens, workers=4, budget=8192):
        loads = [sum(tokens[index] for index in batch) for batch in one]
        assert max(loads) - min(loads) < 0.02 * max(loads)


def test_a_group_above_the_budget_goes_alone() -> None:
    assert micro_batches([20, 1, 1], workers=1, budget=10) == [[[0]], [[1, 2]]]


def test_with_fewer_groups_than_workers_some_have_nothing() -> None:
    assert micro_batches([3, 4], workers=3, budget=10) == [[[1], [0], []]]
    assert micro_batches([], workers=3, budget=10) == []
