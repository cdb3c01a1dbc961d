from ray.exceptions import ActorDiedError
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
