from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, GetTimeoutError
from ray.train import WorkerGroupError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

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
    ("said", "answers", "heard"),
    [
        (["a step", GetTimeoutError(), "a checkpoint", None, "too late"], 9, ["a step", "a checkpoint"]),
        (["a step", ActorDiedError(), "too late"], 9, ["a step"]),
        (["a step", "too late"], 1, ["a step"]),
    ],
    ids=["the learner has stopped", "Ray has ended", "Ray does not answer"],
)
def test_a_learner_that_is_asked_to_stop_is_heard_until_it_has(
    said: list[Any], answers: int, heard: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []

    def answered(_: Any, timeout: float) -> None:
        if len(asked) > answers:
            raise GetTimeoutError

    def following(timeout: float) -> Any:
        if isinstance(one := said.pop(0), Exception):
            raise one
        return one

    monkeypatch.setattr(trainer.ray, "get", answered)
    stops: Any = SimpleNamespace(actor=SimpleNamespace(put=SimpleNamespace(remote=asked.append)))
    assert list(trainer._last(stops, following)) == heard
    assert set(asked) == {True}
