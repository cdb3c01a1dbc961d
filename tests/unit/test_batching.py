import random

from hypothesis import given
from hypothesis import strategies as st

from masters_ray.batching import micro_batches


def test_the_worked_example_of_the_docstring() -> None:
    assert micro_batches([7, 5, 5, 3], workers=2, budget=10) == [[[0, 3], [1, 2]]]


@given(st.lists(st.integers(1, 9), max_size=40), st.integers(1, 5), st.integers(1, 12))
def test_every_group_stands_in_one_micro_batch_within_the_budget(tokens: list[int], workers: int, budget: int) -> None:
    rounds = micro_batches(tokens, workers, budget)
    assert all(len(one) == workers for one in rounds)
    batches = [batch for one in rounds for batch in one]
    assert sorted(index for batch in batches for index in batch) == list(range(len(tokens)))
    assert all(batch == sorted(batch) for batch in batches)
    assert all(sum(tokens[index] for index in batch) <= budget or len(batch) == 1 for batch in batches)


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
