import threading

import pytest

from masters_ray.actors.pool import Pool
from masters_ray.errors import ReplicaError


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
