import threading
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayActorError

from masters_ray.errors import ReplicaError, ReplicaLostError
from masters_ray.masks import MaskReport
from masters_ray.replicas import pool as pool_module
from masters_ray.replicas.pool import CALLS_AT_ONCE, Pool


class Actor:
    """An actor handle whose calls are answered, or lost, by a test's script; a callable is asked for its answer."""

    def __init__(self, script: list[Any], ready: list[Any] | None = None) -> None:
        self.call = self.ready = self
        self._script = {"call": script, "ready": ready or []}
        self.calls = 0
        self.expected: list[Any] = []

    def remote(self, *arguments: Any, **options: Any) -> Any:
        which = "call" if arguments else "ready"
        self.calls += which == "call"
        self.expected += [options["expected"]] if arguments else []
        return self._script[which].pop(0)


@pytest.fixture
def _ray_of_the_script(monkeypatch: pytest.MonkeyPatch) -> None:
    def get(outcome: Any) -> Any:
        if isinstance(outcome, Exception):
            raise outcome
        return outcome() if callable(outcome) else outcome

    monkeypatch.setattr(pool_module.ray, "get", get)
    monkeypatch.setattr(pool_module, "_SECONDS_BETWEEN_LOOKS", 0.0)


pytestmark = pytest.mark.usefixtures("_ray_of_the_script")
RESTARTING = ActorUnavailableError("restarting", None)


def report(digest: str = "same") -> MaskReport:
    return MaskReport(ratio=0.2, sparsity=0.2, matrices=1, digest=digest)


CREATION = """The actor died because of an error raised in creation, \x1b[36mray::ReplicaActor.__init__()\x1b[39m
  File "/x/vllm/engine/arg_utils.py", line 7, in create_model_config
    return ModelConfig(
ValueError: an earlier one
The above exception was the direct cause of the following exception:
Traceback (most recent call last):
  File "/x/host.py", line 7, in __init__
"""


@pytest.mark.parametrize(
    ("end", "told"),
    [
        (
            "pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig\n"
            "  Value error, User-specified max_model_len (8192) is greater than 4096 [type=value_error]\n"
            "    For further information visit https://errors.pydantic.dev/2.14/v/value_error",
            "pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig Value error, "
            "User-specified max_model_len (8192) is greater than 4096 [type=value_error]",
        ),
        (
            "ValueError: To resolve: decrease `--gpu-memory-utilization` or raise --max-num-seqs.",
            "ValueError: To resolve: decrease `engine.gpu_memory_utilization` or raise engine.max_num_seqs.",
        ),
        ("torch.OutOfMemoryError: CUDA out of memory.", "torch.OutOfMemoryError: CUDA out of memory."),
        ("SystemExit: 1", "SystemExit: 1"),
    ],
)
def test_why_a_process_died_is_what_it_raised_last_in_our_own_keys(end: str, told: str) -> None:
    error = RayActorError(error_msg=CREATION + end)
    found = str(pool_module.replica_error(error, "a replica of teacher could not start"))
    assert found == f"a replica of teacher could not start: its process died: {told}"


def test_a_refusal_of_our_own_is_told_as_it_stands() -> None:
    error = RayActorError(error_msg=CREATION + "masters_ray.errors.CheckpointError: x/teacher: expected all weights.")
    found = pool_module.replica_error(error, "a replica of teacher could not start")
    assert (type(found), str(found)) == (
        ReplicaError,
        "a replica of teacher could not start: x/teacher: expected all weights.",
    )


def test_of_a_process_that_raised_nothing_the_last_line_is_told() -> None:
    error = RayActorError(error_msg="The actor died unexpectedly.\nWorker exit detail: killed by signal 9.")
    assert str(pool_module.replica_error(error, "x")).endswith(
        "its process died: Worker exit detail: killed by signal 9."
    )


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
    actor = Actor([ActorDiedError(), "an answer"], [RESTARTING, ActorDiedError(), False, True])
    pool = Pool("student", [actor])
    with pytest.raises(ReplicaLostError, match="student.answer: its process died"):
        pool.call("answer", 1)
    assert pool.call("answer", 1) == "an answer"
    assert actor._script["ready"] == []
    assert pool.calls_at_once == 3


def test_what_a_dead_replica_was_doing_is_not_kept_waiting_for_its_return() -> None:
    back = threading.Event()
    pool = Pool("student", [Actor([ActorDiedError()], [lambda: back.wait(10)]), Actor(["an answer"])])
    assert pool.call_again("answer", 1) == "an answer"
    back.set()
    pool.wait_until_idle()


def test_a_call_that_may_be_made_again_is_made_four_times() -> None:
    actor = Actor([ActorDiedError()] * 4, [True] * 4)
    with pytest.raises(ReplicaLostError):
        Pool("student", [actor]).call_again("answer", 1)
    assert actor.calls == 4
    assert Pool("student", [Actor([ActorDiedError()] * 3 + [7], [True] * 3)]).call_again("answer", 1) == 7


def test_a_pool_whose_replicas_are_gone_for_good_says_so_to_everybody() -> None:
    pool = Pool("student", [Actor([ActorDiedError()], [ActorDiedError()] * 3)])
    with pytest.raises(ReplicaLostError):
        pool.call("answer", 1)
    for _ in range(2):
        with pytest.raises(ReplicaError, match="all replicas died"):
            pool.call("answer", 1)
    pool.wait_until_idle()


def test_a_replica_that_dies_while_it_is_masked_is_masked_when_it_is_back() -> None:
    often = Actor([ActorDiedError()] * 3 + [report(), "an answer"], [RESTARTING, True] * 3)
    pool = Pool("teacher", [often, Actor([report()])], masked=True)
    assert pool.mask(0.2) == [report()] * 2
    assert pool.call("answer", 1) == "an answer"
    assert often.expected == [None] * 4 + [report()]


def test_a_replica_that_dies_whenever_it_is_masked_stops_the_mask() -> None:
    pool = Pool("teacher", [Actor([ActorDiedError()] * 4, [True] * 4)], masked=True)
    with pytest.raises(ReplicaLostError, match="teacher.mask"):
        pool.mask(0.2)


def test_a_replica_that_is_gone_is_not_masked_and_the_others_are() -> None:
    pool = Pool("teacher", [Actor([ActorDiedError()], [ActorDiedError()] * 3), Actor([report()])], masked=True)
    assert pool.mask(0.2) == [report()]
    assert pool.calls_at_once == 3
    pool = Pool("teacher", [Actor([ActorDiedError()], [ActorDiedError()] * 3)], masked=True)
    with pytest.raises(ReplicaError, match="all replicas died"):
        pool.mask(0.2)


def test_a_replica_joins_once_the_pool_is_masked_and_is_masked_itself() -> None:
    late = Actor([report(), "an answer"])
    pool = Pool("teacher", [Actor([report()])], may_join=2, masked=True)
    joining = threading.Thread(target=pool.join, args=(late,))
    joining.start()
    assert (pool.calls_at_once, pool.most_calls_at_once) == (3, 9)
    pool.mask(0.2)
    joining.join(timeout=10)
    assert (pool.calls_at_once, pool.most_calls_at_once) == (6, 9)
    assert late.expected == [report()]
    pool.expect_one_less()
    assert pool.most_calls_at_once == 6


def test_a_call_waits_for_a_replica_that_may_join() -> None:
    pool = Pool("student", [], may_join=1)
    found: list[str] = []
    caller = threading.Thread(target=lambda: found.append(pool.call("answer", 1)))
    caller.start()
    pool.join(Actor(["an answer"]))
    caller.join(timeout=10)
    assert found == ["an answer"]


def test_nobody_joins_a_closed_pool() -> None:
    pool = Pool("teacher", [], may_join=1, masked=True)
    pool.close()
    with pytest.raises(ReplicaError, match="were stopped"):
        pool.join(Actor([]))


class Sleeper(Actor):
    """Its sleep is answered by the script of its calls."""

    def __init__(self, script: list[Any], ready: list[Any] | None = None) -> None:
        super().__init__(script, ready)
        self.sleep = type("Method", (), {"remote": staticmethod(lambda: self.remote("sleep", expected="asleep"))})


def test_all_replicas_sleep_and_keep_the_weights_that_they_were_told_to_hold() -> None:
    actors = [Sleeper([report(), None, "an answer"]), Sleeper([report(), None])]
    pool = Pool("teacher", list(actors), masked=True)
    pool.mask(0.2)
    pool.sleep()
    assert [actor.expected[-1] for actor in actors] == ["asleep"] * 2
    assert pool.call("answer", 1) == "an answer"
    assert actors[0].expected[-1] == report(), "whoever takes its place is masked before it answers"


def test_a_replica_that_is_started_again_sleeps_before_the_student_learns() -> None:
    back = Sleeper([ActorDiedError(), None], [RESTARTING, True])
    Pool("student", [back, Sleeper([None])]).sleep()
    assert back._script == {"call": [], "ready": []}, "waited for, and told once more"
    with pytest.raises(ReplicaError, match="student.sleep: all replicas died"):
        Pool("student", [Sleeper([ActorDiedError()], [ActorDiedError()] * 3)]).sleep()
