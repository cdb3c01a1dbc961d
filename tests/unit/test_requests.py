from __future__ import annotations

import threading
from typing import Any

from masters_ray.errors import ReplicaLostError, WeightsGoneError
from masters_ray.learner.requests import Request, Requests


class Asking:
    """A replica that asks on a thread."""

    def __init__(self, requests: Requests, version: int, replica: str = "replica") -> None:
        self.error: BaseException | None = None
        self._arguments: tuple[Any, ...] = version, replica, "process", 1
        self._thread = threading.Thread(target=self._ask, args=(requests,))
        self._thread.start()

    def _ask(self, requests: Requests) -> None:
        try:
            requests.ask(*self._arguments)
        except BaseException as error:  # noqa: BLE001 - looked at by the test
            self.error = error

    def end(self) -> BaseException | None:
        self._thread.join(10)
        assert not self._thread.is_alive()
        return self.error


def taken(requests: Requests) -> Request:
    found = requests.next(10)
    assert found is not None
    return found


def test_requests_are_served_in_their_order_and_each_once() -> None:
    requests = Requests()
    assert requests.next(0.0) is None
    first = Asking(requests, 4, "a")
    one = taken(requests)
    second = Asking(requests, 4, "b")
    other = taken(requests)
    assert [(one.version, one.replica), (other.version, other.replica)] == [(4, "a"), (4, "b")]
    assert requests.next(0.0) is None
    requests.answer(other.number, None)
    requests.answer(one.number, None)
    assert first.end() is None and second.end() is None


def test_whoever_asks_is_told_what_went_wrong() -> None:
    requests = Requests()
    asking = Asking(requests, 3)
    requests.answer(taken(requests).number, "no route to host")
    error = asking.end()
    assert (
        type(error) is ReplicaLostError and str(error) == "version 3 of the student could not be sent: no route to host"
    )


def test_a_version_that_is_not_there_is_gone() -> None:
    requests = Requests()
    asking = Asking(requests, 3)
    requests.answer(taken(requests).number, "")
    assert isinstance(asking.end(), WeightsGoneError)


def test_what_a_learner_that_is_gone_was_asked_for_does_not_come() -> None:
    requests = Requests()
    served, waiting = Asking(requests, 3), Asking(requests, 5)
    old = taken(requests)
    requests.restart()
    assert isinstance(served.end(), WeightsGoneError) and isinstance(waiting.end(), WeightsGoneError)
    requests.answer(old.number, None)
    asking = Asking(requests, 6)
    anew = taken(requests)
    assert anew.version == 6
    requests.answer(anew.number, None)
    assert asking.end() is None
