from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, RayActorError, RayTaskError

from masters_ray.errors import CheckpointError, ReplicaError, ReplicaLostError
from masters_ray.method.masks import MaskReport
from masters_ray.replicas import pool as pool_module
from masters_ray.replicas.actor import not_loaded
from masters_ray.replicas.pool import CALLS_AT_ONCE, Pool, replica_error

DIED = ActorDiedError()
GONE = [DIED]
"""A replica whose process is not started again."""


class Method:
    """Answered, or lost, by a script; a callable is asked for its answer."""

    def __init__(self, script: list[Any]) -> None:
        self.script = script
        self.expected: list[Any] = []
        self.again = False
        """Ray is told to ask the next process when this one dies."""

    def options(self, max_task_retries: int, retry_exceptions: list[type]) -> Method:
        self.again = (max_task_retries, retry_exceptions) == (-1, [ReplicaLostError])
        return self

    def remote(self, *arguments: Any, expected: Any = None) -> Any:
        self.expected.append(expected or arguments[-1:])
        return self.script.pop(0)


class Actor:
    """An actor handle; ready is answered at once unless the script says otherwise."""

    def __init__(self, call: list[Any], **scripts: list[Any]) -> None:
        self.call = Method(call)
        self.ready, self.mask, self.sleep = (Method(scripts.get(name, [])) for name in ("ready", "mask", "sleep"))


@pytest.fixture(autouse=True)
def killed(monkeypatch: pytest.MonkeyPatch) -> list[Actor]:
    """Actors that were ended."""
    actors: list[Actor] = []

    def get(outcome: Any) -> Any:
        if isinstance(outcome, Exception):
            raise outcome
        return outcome() if callable(outcome) else outcome

    monkeypatch.setattr(pool_module.ray, "get", get)
    monkeypatch.setattr(pool_module.ray, "kill", actors.append)
    return actors


def report(digest: str = "same") -> MaskReport:
    return MaskReport(ratio=0.2, sparsity=0.2, matrices=1, digest=digest)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (
            ValueError(
                "1 validation error for ModelConfig\n  User-specified max_model_len (8192) is greater than 4096\n"
                "    For further information visit https://errors.pydantic.dev/2.14/v/value_error"
            ),
            "ValueError: 1 validation error for ModelConfig User-specified max_model_len (8192) is greater than 4096",
        ),
        (
            ValueError("To resolve: decrease `--gpu-memory-utilization` or raise --max-num-seqs."),
            "ValueError: To resolve: decrease `engine.gpu_memory_utilization` or raise engine.max_num_seqs.",
        ),
        (SystemExit(1), "SystemExit: 1"),
        (CheckpointError("x/teacher: expected all weights."), "x/teacher: expected all weights."),
    ],
)
def test_why_a_model_is_not_loaded_is_what_was_raised_in_our_own_keys(error: BaseException, told: str) -> None:
    assert str(not_loaded(error)) == told


@pytest.mark.parametrize(
    ("error", "kind", "told"),
    [
        (
            RayActorError(error_msg="It died.\nExit: signal 9."),
            ReplicaLostError,
            "x: its process died: Exit: sig",
        ),
        (RayTaskError("f", "", CheckpointError("as it is")), CheckpointError, "as it is"),
        (RayTaskError("f", "", KeyError("k")), ReplicaError, "x: KeyError: 'k'"),
    ],
)
def test_what_ray_tells_becomes_an_error_of_our_own(error: Any, kind: type, told: str) -> None:
    found = replica_error(error, "x")
    assert type(found) is kind and str(found).startswith(told)


def test_a_closed_pool_refuses_calls_also_those_that_waited() -> None:
    go, told = threading.Event(), list[str]()
    pool = Pool("student", [Actor([go.wait] * CALLS_AT_ONCE)])

    def call() -> None:
        try:
            pool.call("answer", 1)
        except ReplicaError as error:
            told.append(str(error))

    callers = [threading.Thread(target=call) for _ in range(CALLS_AT_ONCE + 1)]
    for caller in callers:
        caller.start()
    pool.close()
    go.set()
    for caller in callers:
        caller.join(timeout=10)
    assert set(told) == {"student.answer: the replicas were stopped"}
    pool.wait_until_idle()
    with pytest.raises(ReplicaError, match="were stopped"):
        pool.call("answer")


def test_a_replica_that_died_gets_no_call_before_it_is_ready_again() -> None:
    back = threading.Event()
    actor = Actor([DIED, back.is_set], ready=[lambda: back.wait(10)])
    pool = Pool("student", [actor])
    with pytest.raises(ReplicaLostError, match="student.answer: its process died"):
        pool.call("answer", 1)
    threading.Timer(0.1, back.set).start()
    assert pool.call("answer", 1) is True
    assert actor.ready.again and actor.ready.script == [] and pool.most_calls_at_once == 3


def test_what_a_dead_replica_was_doing_is_not_kept_waiting_for_its_return() -> None:
    back = threading.Event()
    pool = Pool("student", [Actor([DIED], ready=[lambda: back.wait(10)]), Actor(["an answer"])])
    assert pool.call_again("answer", 1) == "an answer"
    back.set()
    pool.wait_until_idle()


@pytest.mark.parametrize("deaths", [3, 4])
def test_a_call_that_may_be_made_again_is_made_four_times(deaths: int) -> None:
    pool = Pool("student", [Actor([*[DIED] * deaths, 7], ready=[None] * deaths)])
    if deaths < 4:
        assert pool.call_again("answer", 1) == 7
    else:
        with pytest.raises(ReplicaLostError):
            pool.call_again("answer", 1)


def test_a_pool_whose_replicas_are_gone_for_good_says_so_to_everybody(killed: list[Actor]) -> None:
    actor = Actor([DIED], ready=GONE)
    pool = Pool("student", [actor])
    with pytest.raises(ReplicaLostError):
        pool.call("answer", 1)
    for _ in range(2):
        with pytest.raises(ReplicaError, match="answer: no replica is left .* student.start: its process died"):
            pool.call("answer", 1)
    pool.wait_until_idle()
    assert killed == [actor]


def test_all_replicas_are_masked_or_asleep_whatever_dies_and_those_gone_are_left_out(killed: list[Actor]) -> None:
    """A call expects the mask, also after its replica slept: whoever takes its place is masked before it answers."""
    first, second = (Actor(["an answer"], mask=[report()], sleep=[None]) for _ in range(2))
    gone = Actor([], mask=[DIED])
    pool = Pool("teacher", [first, gone, second])
    assert pool.mask(0.2) == [report()] * 2
    assert killed == [gone] and pool.most_calls_at_once == 6
    pool.sleep()
    assert first.sleep.script == second.sleep.script == [] and first.sleep.again and first.mask.again
    assert pool.call("answer", 1) == "an answer"
    assert [*first.call.expected, *second.call.expected] == [report()]


@pytest.mark.parametrize("begin", [lambda pool: pool.mask(0.2), lambda pool: pool.sleep()])
def test_where_all_are_gone_nothing_is_masked_and_nothing_sleeps(begin: Callable[[Pool], Any]) -> None:
    with pytest.raises(ReplicaError, match=r"teacher.(mask|sleep): no replica is left"):
        begin(Pool("teacher", [Actor([], mask=[DIED], sleep=[DIED])]))


@pytest.mark.parametrize("weights", ["same", "others"])
def test_a_replica_that_joins_is_masked_before_its_first_call(weights: str, killed: list[Actor]) -> None:
    """It waits for the first mask; one with other weights is left out, and the others go on."""
    other = RayTaskError("f", "", CheckpointError("other weights"))
    late = Actor([], ready=[None, None if weights == "same" else other])
    pool = Pool("teacher", [Actor([], mask=[report()])])
    pool.join(late)
    assert pool.most_calls_at_once == 6
    assert pool.mask(0.2) == [report()]
    pool.wait_until_idle()
    assert late.ready.expected == [(), (report(),)]
    assert (killed, pool.most_calls_at_once) == (([], 6) if weights == "same" else ([late], 3))


def test_a_call_waits_for_a_replica_that_may_join() -> None:
    pool = Pool("student", [])
    pool.join(Actor(["an answer"], ready=[lambda: threading.Event().wait(0.1), None]))
    assert pool.call("answer", 1) == "an answer"


def test_nobody_joins_a_closed_pool() -> None:
    pool, late = Pool("teacher", []), Actor([])
    pool.close()
    pool.join(late)
    pool.wait_until_idle()
    assert late.ready.expected == []
