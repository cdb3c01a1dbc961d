from __future__ import annotations

import threading
import time
from typing import Any

import pyarrow as pa
import pytest

from masters_ray import store
from masters_ray.errors import LearnerError, WeightsGoneError
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


def test_a_replica_is_served_by_the_learner_that_is_there_now() -> None:
    exchange = started([1])
    told: list[BaseException | None] = []

    def ask() -> None:
        try:
            exchange.fetch(0, "replica", "process", 1)
            told.append(None)
        except WeightsGoneError as error:
            told.append(error)

    for outcome in ("served", "gone"):
        asking = threading.Thread(target=ask)
        asking.start()
        request = exchange.next_request(10.0)
        assert request is not None and (request.version, request.replica) == (0, "replica")
        if outcome == "served":
            exchange.answered(request.number, None)
        else:
            exchange.begin(0, {})
        asking.join(10)
    assert told[0] is None and isinstance(told[1], WeightsGoneError)


def test_the_learner_is_told_which_versions_still_write() -> None:
    exchange = started([1, 2])
    assert exchange.publish(weights(0)) == [0]
    ordered = order(exchange)
    assert exchange.publish(weights(1)) == [0, 1]
    exchange.deliver(ordered, ROWS)
    assert exchange.publish(weights(1)) == [1]


def in_turns(online: list[int], workers: int, wait: float = 30.0, max_staleness: int = 0) -> Exchange:
    exchange = Exchange(online, max_staleness, wait, workers)
    exchange.clear()
    exchange.begin(0, {})
    return exchange


class Worker:
    """One of the learner's, who waits for an iteration on a thread."""

    def __init__(self, exchange: Exchange, iteration: int) -> None:
        self.found: Any = "nothing yet"
        self._thread = threading.Thread(target=self._wait, args=(exchange, iteration), daemon=True)
        self._thread.start()
        time.sleep(0.05)

    def _wait(self, exchange: Exchange, iteration: int) -> None:
        try:
            self.found = exchange.take(iteration)
        except LearnerError as error:
            self.found = str(error)

    def end(self) -> Any:
        self._thread.join(timeout=10)
        return self.found


def test_in_turns_an_order_is_given_once_all_workers_wait_for_it_and_one_at_a_time() -> None:
    exchange = in_turns([1, 2], workers=2, max_staleness=1)
    exchange.publish(weights(0))
    assert exchange.next_order(0.0) is None
    workers = [Worker(exchange, 1)]
    assert exchange.next_order(0.0) is None, "the other one still works"
    workers.append(Worker(exchange, 1))
    ordered = order(exchange)
    assert (ordered.iteration, exchange.wanted(ordered)) == (1, True)
    assert exchange.next_order(0.0) is None, "the replicas have one"
    exchange.deliver(ordered, ROWS)
    assert [worker.end() for worker in workers] == [ROWS, ROWS]
    assert exchange.next_order(0.0) is None, "the student learns, though the weights for iteration 2 are there"
    workers = [Worker(exchange, 2), Worker(exchange, 2)]
    exchange.deliver(order(exchange), ROWS)
    assert [worker.end() for worker in workers] == [ROWS, ROWS]


def test_in_turns_the_learner_goes_on_without_rows_only_when_the_replicas_have_stopped() -> None:
    exchange = in_turns([1, 2], workers=2, wait=0.3)
    exchange.publish(weights(0))
    workers = [Worker(exchange, 1), Worker(exchange, 1)]
    ordered = order(exchange)
    time.sleep(0.3)
    assert not exchange.wanted(ordered), "they stop after the batches that they are at"
    assert [worker.found for worker in workers] == ["nothing yet"] * 2
    exchange.deliver(ordered, None)
    assert [worker.end() for worker in workers] == [None, None]
    exchange.publish(weights(1))
    workers = [Worker(exchange, 2), Worker(exchange, 2)]
    assert order(exchange).iteration == 2


def test_in_turns_rows_that_come_with_the_replicas_rest_are_learned_from_though_late() -> None:
    exchange = in_turns([1], workers=1, wait=0.2)
    exchange.publish(weights(0))
    worker = Worker(exchange, 1)
    ordered = order(exchange)
    time.sleep(0.2)
    assert worker.found == "nothing yet"
    exchange.deliver(ordered, ROWS)
    assert worker.end() is ROWS


def test_in_turns_replicas_that_do_not_stop_stop_the_learner() -> None:
    exchange = in_turns([1], workers=1, wait=0.1)
    exchange.publish(weights(0))
    worker = Worker(exchange, 1)
    order(exchange)
    told = "rollouts of iteration 1 did not stop within 0.1 s after they were to. Raise rollout.max_wait_seconds"
    assert told in worker.end()
    with pytest.raises(LearnerError, match="rollouts of the start before did not stop"):
        exchange.clear()


def test_in_turns_an_iteration_that_nobody_took_up_is_left_out_when_its_time_is_over() -> None:
    exchange = in_turns([1], workers=1, wait=0.1)
    assert Worker(exchange, 1).end() is None, "its weights never came"


def test_in_turns_workers_that_start_wait_until_the_order_of_those_before_is_back() -> None:
    exchange = in_turns([1], workers=2)
    exchange.publish(weights(0))
    gone = [Worker(exchange, 1), Worker(exchange, 1)]
    ordered = order(exchange)
    starting = threading.Thread(target=exchange.clear)
    starting.start()
    assert {worker.end() for worker in gone} == {"iteration 1 was waited for by a worker that is gone"}
    assert starting.is_alive() and not exchange.wanted(ordered)
    exchange.deliver(ordered, ROWS)
    starting.join(timeout=10)
    exchange.begin(0, {})
    exchange.publish(weights(0))
    first = Worker(exchange, 1)
    assert exchange.next_order(0.0) is None, "those that are gone do not count"
    second = Worker(exchange, 1)
    exchange.deliver(order(exchange), ROWS)
    assert first.end() is second.end() is ROWS


def test_in_turns_whoever_waits_is_told_why_the_rollouts_stopped() -> None:
    exchange = in_turns([1], workers=1, wait=0.2)
    exchange.publish(weights(0))
    worker = Worker(exchange, 1)
    order(exchange)
    time.sleep(0.2)
    exchange.fail("all replicas died")
    assert worker.end() == "all replicas died"
    with pytest.raises(LearnerError, match="all replicas died"):
        exchange.clear()


def test_a_learner_that_cannot_go_on_is_told_so_and_one_that_begins_anew_may() -> None:
    exchange = started([1, 2])
    exchange.publish(weights(0))
    worker = Worker(exchange, 1)
    exchange.stop_learner("a transfer does not end")
    assert worker.end() == "a transfer does not end"
    with pytest.raises(LearnerError, match="does not end"):
        exchange.publish(weights(1))
    exchange.begin(0, {})
    exchange.publish(weights(0))
    exchange.deliver(order(exchange), ROWS)
    assert exchange.take(1) is not None
