from __future__ import annotations

import threading
import time
from typing import Any

import pyarrow as pa
import pytest

from masters_ray import store
from masters_ray.errors import LearnerError
from masters_ray.learner.exchange import Exchange, Order
from masters_ray.weights import StudentWeights
from tests.builders import group

ROWS = store.table_of([group()])


def weights(version: int) -> StudentWeights:
    return StudentWeights(version=version, digests={"w": f"{version}"}, pieces=(), seconds=0.0)


def started(online: list[int], max_staleness: int = 0, learned: int = 0, wait: float = 30.0) -> Exchange:
    exchange = Exchange(online, max_staleness, wait)
    exchange.begin(learned, {learned: "a digest"})
    return exchange


def order(exchange: Exchange) -> Order:
    found = exchange.next_order(0.0)
    assert found is not None
    return found


def test_nothing_is_ordered_before_the_learner_has_begun_and_the_writers_weights_are_there() -> None:
    exchange = Exchange([3], 0, 30.0)
    assert exchange.next_order(0.0) is None
    exchange.begin(0, {})
    exchange.publish(weights(1))
    assert exchange.next_order(0.0) is None, "strictly on-policy, iteration 3 is written by version 2"
    exchange.publish(weights(2))
    assert (order(exchange).iteration, order(exchange).weights.version) == (3, 2)


def test_iterations_are_answered_in_their_order_each_by_the_oldest_student_that_may() -> None:
    exchange = started([2, 4, 9], max_staleness=2)
    versions = []
    for version in (0, 1, 6):
        exchange.publish(weights(version))
        ordered = order(exchange)
        versions.append((ordered.iteration, ordered.weights.version))
        exchange.deliver(ordered, ROWS)
    assert versions == [(2, 0), (4, 1), (9, 6)]
    assert exchange.next_order(0.0) is None


def test_rows_are_waited_for_and_every_worker_gets_the_same() -> None:
    exchange = started([1])
    exchange.publish(weights(0))
    taken: list[Any] = []
    workers = [threading.Thread(target=lambda: taken.append(exchange.take(1))) for _ in range(3)]
    for worker in workers:
        worker.start()
    time.sleep(0.05)
    assert taken == []
    exchange.deliver(order(exchange), ROWS)
    for worker in workers:
        worker.join()
    assert taken == [ROWS] * 3


def test_the_learner_goes_on_without_rows_after_the_longest_wait_and_all_workers_do() -> None:
    exchange = started([1, 2], wait=0.05)
    exchange.publish(weights(0))
    ordered = order(exchange)
    assert exchange.take(1) is None
    exchange.deliver(ordered, ROWS)
    assert exchange.take(1) is None, "the other worker must not learn from what came late"
    exchange.publish(weights(1))
    assert order(exchange).iteration == 2


def test_a_learner_that_goes_on_writes_with_the_weights_that_it_has() -> None:
    exchange = started([5, 8], max_staleness=6, learned=4)
    exchange.publish(weights(4))
    assert (order(exchange).iteration, order(exchange).weights.version) == (5, 4)
    assert order(exchange).students == {4: "a digest"}
    exchange.deliver(order(exchange), ROWS)
    assert (order(exchange).iteration, order(exchange).weights.version) == (8, 4), "1 = 8 - 1 - 6 is not there any more"


def test_what_a_learner_that_went_back_has_not_reached_is_wanted_again() -> None:
    exchange = started([2, 4])
    exchange.publish(weights(1))
    before = order(exchange)
    exchange.deliver(before, ROWS)
    exchange.begin(1, {})  # the workers were lost after the second iteration and begin at the checkpoint of the first
    exchange.publish(weights(1))
    assert order(exchange).iteration == 2
    exchange.deliver(before, ROWS)
    assert order(exchange).iteration == 2, "what was ordered by the lost workers is not delivered"


def test_a_worker_that_is_gone_takes_no_iteration_from_the_one_in_its_place() -> None:
    exchange = started([1], wait=0.2)
    exchange.publish(weights(0))
    told: list[str] = []

    def wait() -> None:
        with pytest.raises(LearnerError) as caught:
            exchange.take(1)
        told.append(str(caught.value))

    gone = threading.Thread(target=wait)
    gone.start()
    time.sleep(0.1)
    exchange.begin(0, {})
    gone.join()
    assert told == ["iteration 1 was waited for by a worker that is gone"]
    exchange.publish(weights(0))
    exchange.deliver(order(exchange), ROWS)
    assert exchange.take(1) is ROWS


def test_weights_that_write_for_nothing_any_more_are_not_kept() -> None:
    exchange = started([1, 2, 3], wait=0.01)
    for version in range(3):
        exchange.publish(weights(version))
    assert exchange.take(1) is None and exchange.take(2) is None, "nobody answers"
    assert list(exchange._weights) == [2]


def test_rows_behind_the_learner_are_dropped_and_never_ordered_again() -> None:
    exchange = started([1, 2])
    exchange.publish(weights(0))
    exchange.deliver(order(exchange), ROWS)
    assert isinstance(exchange.take(1), pa.Table)
    exchange.forget(1)
    exchange.publish(weights(1))
    assert order(exchange).iteration == 2


def test_whoever_waits_is_told_why_the_rollouts_stopped() -> None:
    exchange = started([1])
    told: list[str] = []

    def take() -> None:
        with pytest.raises(LearnerError) as caught:
            exchange.take(1)
        told.append(str(caught.value))

    waiting = threading.Thread(target=take)
    waiting.start()
    exchange.fail("version 3 arrived with other weights")
    waiting.join()
    assert told == ["version 3 arrived with other weights"]
    with pytest.raises(LearnerError, match="version 3"):
        exchange.publish(weights(0))
