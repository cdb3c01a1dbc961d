import threading
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError

from masters_ray.actors import pool as pool_module
from masters_ray.actors.pool import Pool
from masters_ray.errors import ReplicaError, ReplicaLostError


def test_a_closed_pool_refuses_calls_also_those_that_waited() -> None:
    busy: Pool = Pool("student", [object()])
    places = [busy._idle.get() for _ in range(busy.calls_at_once)]  # its only replica has as many calls as it takes
    told: list[str] = []

    def wait() -> None:
        try:
            busy.call("answer")
        except ReplicaError as error:
            told.append(str(error))

    waiting = threading.Thread(target=wait)
    waiting.start()
    busy.close()
    for place in places:
        busy._idle.put(place)
    waiting.join(timeout=10)
    assert told == ["student.answer: the replicas were stopped"]
    busy.wait_until_idle()
    with pytest.raises(ReplicaError, match="were stopped"):
        busy.call("answer")


class Actor:
    """An actor handle whose calls are answered, or lost, by a test's script."""

    def __init__(self, script: list[Any], ready: list[Any]) -> None:
        self.call = self.ready = self
        self._script = {"call": script, "ready": ready}
        self.calls = 0

    def remote(self, *arguments: Any, **options: Any) -> Any:
        which = "call" if arguments else "ready"
        self.calls += which == "call"
        return self._script[which].pop(0)


@pytest.fixture
def _ray_of_the_script(monkeypatch: pytest.MonkeyPatch) -> None:
    def get(outcome: Any) -> Any:
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    monkeypatch.setattr(pool_module.ray, "get", get)
    monkeypatch.setattr(pool_module, "_SECONDS_BETWEEN_LOOKS", 0.0)


@pytest.mark.usefixtures("_ray_of_the_script")
def test_a_replica_that_died_gets_no_call_before_it_is_ready_again() -> None:
    unavailable = ActorUnavailableError("restarting", None)
    actor = Actor([ActorDiedError(), "an answer"], [unavailable, ActorDiedError(), False, True])
    pool = Pool("student", [actor])
    with pytest.raises(ReplicaLostError, match="student.answer: its process died"):
        pool.call("answer", 1)
    assert pool.call("answer", 1) == "an answer"
    assert pool.calls_at_once == 3


@pytest.mark.usefixtures("_ray_of_the_script")
def test_a_pool_whose_replicas_are_gone_for_good_says_so_to_everybody() -> None:
    pool = Pool("student", [Actor([ActorDiedError()] * 3, [ActorDiedError()] * 9)])
    for _ in range(3):
        with pytest.raises(ReplicaLostError):
            pool.call("answer", 1)
    for _ in range(2):
        with pytest.raises(ReplicaError, match="all replicas died"):
            pool.call("answer", 1)
    pool.wait_until_idle()
