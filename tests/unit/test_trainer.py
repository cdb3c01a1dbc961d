from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, GetTimeoutError
from ray.train import WorkerGroupError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError
from ray.util.queue import Empty

from masters_ray.errors import LearnerError
from masters_ray.learner import trainer


def stopped(failures: dict[int, Exception]) -> str:
    return trainer._cause(WorkerGroupError("Ray's dump", failures))


def test_workers_say_themselves_once_what_stopped_them_and_a_process_that_ended_is_told_without_rays_dump() -> None:
    dead = WorkerHealthCheckFailedError("A worker health check failed. Worker info: ...", ActorDiedError())
    told = stopped({0: LearnerError("rows are missing"), 1: LearnerError("rows are missing"), 2: dead, 3: dead})
    assert told.startswith("training stopped: LearnerError: rows are missing; the process of a worker ended (killed")
    assert (told.count("rows are missing"), told.count("process of")) == (1, 1)
    assert "learner.max_failures" in told and "health check" not in told and "\n" not in told


@pytest.mark.parametrize(
    ("said", "ended", "heard"),
    [
        (["a step", Empty(), "a checkpoint", None, "too late"], False, ["a step", "a checkpoint"]),
        (["a step", Empty(), "too late"], True, ["a step"]),
        (["a step", GetTimeoutError(), "too late"], False, ["a step"]),
        (["a step", ActorDiedError(), "too late"], False, ["a step"]),
    ],
    ids=["the learner has stopped", "the worker group has ended", "Ray does not answer", "Ray has ended"],
)
def test_a_learner_that_was_asked_to_stop_is_heard_to_its_end(
    said: list[Any], ended: bool, heard: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def answered(one: Any, timeout: float) -> Any:
        if isinstance(one, Exception):
            raise one
        return one

    monkeypatch.setattr(trainer.ray, "get", answered)
    reports = SimpleNamespace(actor=SimpleNamespace(get=SimpleNamespace(remote=lambda _: said.pop(0))))
    group = Future[None]()
    if ended:
        group.set_result(None)
    assert list(trainer._last(reports, group)) == heard
