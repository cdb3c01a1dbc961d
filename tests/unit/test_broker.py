import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from masters_ray.errors import LearnerError, WeightsGoneError
from masters_ray.weight_sync.broker import Order, RolloutBroker
from masters_ray.weight_sync.stream import Invitation
from masters_ray.weight_sync.student_weights import StudentWeights
from tests.builders import group, table_of

ROWS = table_of([group()])
INVITATION = Invitation(address="10.0.0.7", port=1234, ranks=2, backend="nccl")
GONE = "iteration {} was waited for by a worker that is gone"
Begin = Callable[..., Future[Any]]
"""Begins a call that waits for the broker, on a thread."""


def weights(version: int) -> StudentWeights:
    return StudentWeights(version=version, digests={"w": f"{version}"}, pieces=(), seconds=0.0)


def started(online: list[int], wait: float = 30.0, workers: int | None = None, version: int = 0) -> RolloutBroker:
    """With this version there. workers: of the learner, if it takes turns with the rollouts."""
    broker = RolloutBroker(online, 0, wait, workers)
    broker.begin(0, {})
    broker.publish(weights(version))
    return broker


def order(broker: RolloutBroker) -> Order:
    found = broker.next_order(0.0)
    assert found is not None
    return found


def ordered(broker: RolloutBroker) -> tuple[int, int]:
    """Iteration and version."""
    found = order(broker)
    return found.iteration, found.weights.version


@pytest.fixture
def begin() -> Iterator[Begin]:
    threads = ThreadPoolExecutor(8)

    def submit(method: Callable[..., Any], *arguments: Any) -> Future[Any]:
        call = threads.submit(method, *arguments)
        time.sleep(0.05)
        return call

    yield submit
    threads.shutdown(wait=False)


def told(*calls: Future[Any]) -> set[str]:
    return {str(call.exception(10)) for call in calls}


def test_iterations_are_answered_in_their_order_each_by_the_oldest_student_that_may_when_it_is_there() -> None:
    broker = RolloutBroker([2, 4, 9], 2, 30.0)
    assert broker.next_order(0.0) is None
    broker.begin(0, {})
    for version, expected in ((0, (2, 0)), (1, (4, 1)), (6, (9, 6))):
        assert broker.next_order(0.0) is None
        broker.publish(weights(version))
        assert ordered(broker) == expected
        broker.deliver(order(broker), ROWS)
    assert broker.next_order(0.0) is None


def test_the_learner_goes_on_without_rows_after_the_longest_wait_and_all_workers_do() -> None:
    broker = started([1, 2], wait=0.05)
    late = order(broker)
    assert broker.take(1) is None
    broker.deliver(late, ROWS)
    assert broker.take(1) is None, "the other worker must not learn from what came late"
    broker.publish(weights(1))
    assert ordered(broker) == (2, 1)
    assert started([1], workers=1, wait=0.1).take(1) is None, "also in turns, when nobody took up its order"


def test_a_learner_that_goes_on_writes_with_the_weights_that_it_has() -> None:
    broker = RolloutBroker([5, 8], 6, 30.0)
    broker.begin(4, {4: "a digest"})
    broker.publish(weights(4))
    assert (ordered(broker), order(broker).students) == ((5, 4), {4: "a digest"})
    broker.deliver(order(broker), ROWS)
    assert ordered(broker) == (8, 4), "1 = 8 - 1 - 6 is not there any more"


def test_what_a_learner_that_went_back_has_not_reached_is_wanted_again(begin: Begin) -> None:
    """Its workers were lost in the second iteration and begin at the checkpoint of the first."""
    broker = started([2, 4], version=1)
    before, gone = order(broker), begin(broker.take, 2)
    broker.begin(1, {})
    assert told(gone) == {GONE.format(2)}
    broker.publish(weights(1))
    broker.deliver(before, ROWS)
    assert ordered(broker) == (2, 1), "what was ordered by the lost workers is not delivered"
    broker.deliver(order(broker), ROWS)
    assert broker.take(2) is ROWS


def test_weights_and_rows_behind_the_learner_are_dropped_and_never_ordered_again() -> None:
    broker, first = started([1, 2]), weights(0)
    broker.publish(first)
    dropped, rows = weakref.ref(first), table_of([group()])
    broker.deliver(order(broker), rows)
    del first
    assert dropped() is None
    assert broker.take(1) is rows
    broker.forget(1)
    assert broker.take(1) is None
    broker.publish(weights(1))
    assert ordered(broker) == (2, 1)


@pytest.mark.parametrize(("in_turns", "wait"), [(None, 30.0), (1, 0.5)])
def test_whoever_waits_is_told_why_the_rollouts_stopped(in_turns: int | None, wait: float, begin: Begin) -> None:
    """In turns also while they have an order whose time is over."""
    broker = started([1], workers=in_turns, wait=wait)
    waiting = [begin(broker.take, 1), begin(broker.fetch, 0, 1)]
    order(broker)
    time.sleep(0.5)
    broker.fail("version 3 arrived with other weights")
    assert told(*waiting) == {"version 3 arrived with other weights"}
    assert told(begin(broker.publish, weights(0)), begin(broker.begin, 0, {})) == told(*waiting)


def test_replicas_are_invited_each_to_the_version_that_it_asked_for_by_a_learner_that_is_there(begin: Begin) -> None:
    broker = started([1])
    assert broker.next_request(0.0) is None
    asking = [begin(broker.fetch, version, 2) for version in (4, 5, 6)]
    requests: list[Any] = [broker.next_request(10.0) for _ in asking]
    assert [(one.version, one.ranks) for one in requests] == [(4, 2), (5, 2), (6, 2)]
    broker.invite(requests[1], None)
    broker.invite(requests[0], INVITATION)
    assert asking[0].result(10) == INVITATION
    broker.begin(0, {})
    for version in (5, 6):
        with pytest.raises(WeightsGoneError, match=f"version {version} of the student is gone with the learner that"):
            asking[version - 4].result(10)
    broker.invite(requests[2], INVITATION)
    again = begin(broker.fetch, 6, 1)
    assert not again.done(), "what the learner before was asked for is not for this one"
    broker.invite(broker.next_request(0.0), INVITATION)  # type: ignore[arg-type]
    assert again.result(10) == INVITATION


def test_in_turns_an_order_is_given_once_all_workers_wait_for_it_and_one_at_a_time(begin: Begin) -> None:
    broker = RolloutBroker([1, 2], 1, 30.0, 2)
    broker.begin(0, {})
    broker.publish(weights(0))
    assert broker.next_order(0.0) is None
    waiting = [begin(broker.take, 1)]
    assert broker.next_order(0.0) is None, "the other one still works"
    waiting.append(begin(broker.take, 1))
    first = order(broker)
    assert (first.iteration, broker.wanted(first)) == (1, True)
    assert broker.next_order(0.0) is None, "the replicas have one"
    broker.deliver(first, ROWS)
    assert [call.result(10) for call in waiting] == [ROWS, ROWS]
    assert broker.next_order(0.0) is None, "the student learns, though the weights for iteration 2 are there"
    waiting = [begin(broker.take, 2) for _ in range(2)]
    broker.deliver(order(broker), ROWS)
    assert [call.result(10) for call in waiting] == [ROWS, ROWS]


@pytest.mark.parametrize("rows", [None, ROWS])
def test_in_turns_the_learner_goes_on_when_replicas_have_stopped_with_what_is_whole(rows: Any, begin: Begin) -> None:
    broker = started([1, 2], workers=2, wait=0.3)
    waiting = [begin(broker.take, 1) for _ in range(2)]
    late = order(broker)
    time.sleep(0.3)
    assert not broker.wanted(late), "they stop after the batches that they are at"
    assert not any(call.done() for call in waiting)
    broker.deliver(late, rows)
    assert [call.result(10) for call in waiting] == [rows, rows]


def test_in_turns_replicas_that_do_not_stop_stop_the_learner(begin: Begin) -> None:
    broker = started([1], workers=1, wait=0.1)
    waiting = begin(broker.take, 1)
    order(broker)
    with pytest.raises(LearnerError, match=r"iteration 1 did not stop within 0.1 s .* Raise rollout.max_wait_seconds"):
        waiting.result(10)
    with pytest.raises(LearnerError, match="rollouts of the start before did not stop"):
        broker.begin(None, {})


def test_in_turns_workers_that_start_wait_until_the_order_of_those_before_is_back(begin: Begin) -> None:
    broker = started([1], workers=2)
    gone = [begin(broker.take, 1) for _ in range(2)]
    before = order(broker)
    starting = begin(broker.begin, None, {})
    assert told(*gone) == {GONE.format(1)}
    assert not starting.done() and not broker.wanted(before)
    broker.deliver(before, ROWS)
    starting.result(10)
    broker.begin(0, {})
    broker.publish(weights(0))
    waiting = [begin(broker.take, 1)]
    assert broker.next_order(0.0) is None, "those that are gone do not count"
    waiting.append(begin(broker.take, 1))
    broker.deliver(order(broker), ROWS)
    assert [call.result(10) for call in waiting] == [ROWS, ROWS]
