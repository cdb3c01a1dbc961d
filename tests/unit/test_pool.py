import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self

import pytest
from ray.exceptions import ActorDiedError, RayActorError, RayTaskError

from masters_ray.errors import CheckpointError, ReplicaError, ReplicaLostError
from masters_ray.method.masks import MaskReport
from masters_ray.replicas import pool as pool_module
from masters_ray.replicas.actor import not_loaded
from masters_ray.replicas.pool import CALLS_AT_ONCE, REPEAT_AFTER_DEATH, Pool, replica_error

DIED = ActorDiedError()
REPORT = MaskReport(ratio=0.2, sparsity=0.2, digest="same")


class Method:
    """Answered, or lost, by a script; a callable is asked for its answer."""

    def __init__(self, script: list[Any]) -> None:
        self.script = script
        self.asked: list[Any] = []  # the weights expected for each call
        self.again = False  # Ray is told to ask the next process when this one dies

    def options(self, **options: Any) -> Self:
        self.again = options == REPEAT_AFTER_DEATH
        return self

    def remote(self, *arguments: Any, expected: Any = None) -> Any:
        self.asked.append(expected)
        return self.script.pop(0)


class Actor:
    def __init__(self, call: list[Any], **scripts: list[Any]) -> None:
        self.call = Method(call)
        self.ready, self.mask, self.sleep = (Method(scripts.get(name, [])) for name in ("ready", "mask", "sleep"))


@pytest.fixture(autouse=True)
def killed(monkeypatch: pytest.MonkeyPatch) -> list[Actor]:
    actors: list[Actor] = []

    def get(outcome: Any) -> Any:
        if isinstance(outcome, Exception):
            raise outcome
        return outcome() if callable(outcome) else outcome

    monkeypatch.setattr(pool_module.ray, "get", get)
    monkeypatch.setattr(pool_module.ray, "kill", actors.append)
    return actors


def test_why_a_model_is_not_loaded_is_what_was_raised_in_our_own_keys() -> None:
    error = ValueError("1 error\n  Raise `--max-num-seqs`.")
    assert str(not_loaded(error)) == "ValueError: 1 error Raise `engine.max_num_seqs`."
    assert str(not_loaded(SystemExit(1))) == "SystemExit: 1"
    assert str(not_loaded(CheckpointError("x/teacher: expected all weights."))) == "x/teacher: expected all weights."


@pytest.mark.parametrize(
    ("error", "kind", "told"),
    [
        (RayActorError(error_msg="It died.\nExit: signal 9."), ReplicaLostError, "x: its process died: Exit: sig"),
        (RayTaskError("f", "", CheckpointError("as it is")), CheckpointError, "as it is"),
        (RayTaskError("f", "", KeyError("k")), ReplicaError, "x: KeyError: 'k'"),
    ],
)
def test_what_ray_tells_becomes_an_error_of_our_own(error: Any, kind: type, told: str) -> None:
    found = replica_error(error, "x")
    assert type(found) is kind and str(found).startswith(told)


def test_a_closed_pool_refuses_calls_also_those_that_waited() -> None:
    """Those whose process died when it was stopped, and one that waited for a place."""
    began, stopped = threading.Barrier(CALLS_AT_ONCE + 1), threading.Event()

    def dies() -> None:
        began.wait(10)
        stopped.wait(10)
        raise DIED

    pool = Pool("student", [Actor([dies] * CALLS_AT_ONCE, ready=[DIED] * CALLS_AT_ONCE)])
    with ThreadPoolExecutor() as threads:
        calls = [threads.submit(pool.call, "answer") for _ in range(CALLS_AT_ONCE + 1)]
        began.wait(10)
        pool.close()
        stopped.set()
    pool.wait_until_idle()
    assert {str(call.exception()) for call in calls} == {"student.answer: the replicas were stopped"}


def test_a_replica_that_died_gets_no_call_before_it_is_ready_again_and_is_told_the_mask_of_before() -> None:
    """The call that it lost ends then; the others are answered by the other replica."""
    asked, back = threading.Barrier(2), threading.Event()
    first = Actor([DIED, "again"], mask=[REPORT, lambda: (asked.wait(10), back.wait(10))])
    second = Actor(["one", "two"], mask=[REPORT])
    pool = Pool("teacher", [first, second])
    pool.mask(0.2)
    with ThreadPoolExecutor() as threads:
        lost = threads.submit(pool.call, "answer")
        asked.wait(10)
        assert [pool.call("answer") for _ in range(2)] == ["one", "two"]
        assert not lost.done()
        back.set()
        with pytest.raises(ReplicaLostError, match="teacher.answer: its process died"):
            lost.result()
    assert pool.call("answer") == "again"
    assert first.mask.again and first.call.asked == [REPORT, REPORT]


def test_a_call_that_may_be_made_again_is_made_four_times() -> None:
    pool = Pool("student", [Actor([DIED, DIED, DIED, 7, DIED, DIED, DIED, DIED], ready=[None] * 7)])
    assert pool.call_again("answer", 1) == 7
    with pytest.raises(ReplicaLostError):
        pool.call_again("answer", 1)


def test_a_pool_whose_replicas_are_gone_for_good_says_so(killed: list[Actor]) -> None:
    actor = Actor([DIED], ready=[DIED])
    pool = Pool("student", [actor])
    with pytest.raises(ReplicaLostError):
        pool.call("answer")
    with pytest.raises(ReplicaError, match="answer: no replica is left .* student.start: its process died"):
        pool.call("answer")
    assert killed == [actor]


def test_all_replicas_are_masked_or_asleep_whatever_dies_and_those_gone_are_left_out(killed: list[Actor]) -> None:
    first, second = (Actor(["an answer"], mask=[REPORT], sleep=[None]) for _ in range(2))
    gone = Actor([], mask=[DIED])
    pool = Pool("teacher", [first, gone, second])
    assert pool.mask(0.2) == [REPORT] * 2
    assert killed == [gone] and pool.most_calls_at_once == 2 * CALLS_AT_ONCE
    pool.sleep()
    assert first.sleep.script == second.sleep.script == [] and first.sleep.again and first.mask.again
    assert pool.call("answer") == "an answer"
    assert [*first.call.asked, *second.call.asked] == [REPORT]
