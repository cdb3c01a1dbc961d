from ray.exceptions import ActorDiedError
from ray.train import WorkerGroupError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

from masters_ray.errors import LearnerError
from masters_ray.learner import trainer


def stopped(failures: dict[int, Exception]) -> str:
    return trainer._cause(WorkerGroupError("Ray's dump", failures))


def test_a_worker_whose_process_ended_is_told_in_two_sentences_without_rays_dump() -> None:
    dead = WorkerHealthCheckFailedError("A worker health check failed. Worker info: ...", ActorDiedError())
    told = stopped({1: dead, 0: dead})
    assert told.startswith("training stopped: the process of worker 0 and worker 1 ended (killed")
    assert "learner.max_failures" in told
    assert "health check" not in told and "\n" not in told


def test_what_workers_say_themselves_stands_first_and_once() -> None:
    dead = WorkerHealthCheckFailedError("A worker health check failed.", ActorDiedError())
    told = stopped({0: LearnerError("rows are missing"), 1: LearnerError("rows are missing"), 2: dead})
    assert told.startswith("training stopped: LearnerError: rows are missing; the process of worker 2 ended")
    assert told.count("rows are missing") == 1
