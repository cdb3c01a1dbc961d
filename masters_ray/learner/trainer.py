"""Starts the worker group, forwards its reports, and turns its failure into a LearnerError."""

import importlib
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

import ray.train
from ray.data import DataContext, ExecutionOptions
from ray.exceptions import GetTimeoutError, RayActorError, RayError
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.torch.config import _TorchBackend
from ray.util.queue import Queue

from masters_ray import store
from masters_ray.config import Learner
from masters_ray.errors import LearnerError
from masters_ray.learner.job import LearnerJob, Report
from masters_ray.learner.loop import DATASET, train
from masters_ray.learner.work import ALLOCATOR
from masters_ray.progress import say

_SECONDS_TO_SAVE = 600.0  # for the step in progress and its checkpoint, once the learner is asked to stop
_SECONDS_TO_ANSWER = 10.0
_DEAD = (
    "the process of a worker ended (killed, perhaps by the system because memory ran out: see dmesg). The same command "
    "goes on from the last checkpoint; learner.max_failures lets the learner do so by itself"
)


def fit(
    job: LearnerJob, stores: Sequence[store.Where], on_report: Callable[[Report], None], broker: Any = None
) -> None:
    """Trains on the stores in their order and exports the student; resumes from the last checkpoint in ``job.storage``.

    on_report: called in this thread. broker: a RolloutBroker actor, for online iterations. Raises LearnerError with the
    workers' own error messages. A KeyboardInterrupt is raised once the learner has written a checkpoint after the step
    in progress, or after ten minutes.
    """
    settings = job.settings
    reports, stops = (Queue(actor_options={"num_cpus": 0}) for _ in range(2))
    stops.actor.empty.remote()  # connects: a signal that ends Ray's servers leaves no other way to reach the actor
    DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    trainer = TorchTrainer(
        train,
        train_loop_config={"job": job, "reports": reports, "stops": stops, "broker": broker, "stores": list(stores)},
        torch_config=GroupConfig(backend="nccl" if settings.gpus else "gloo"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=settings.workers,
            use_gpu=bool(settings.gpus),
            resources_per_worker={"CPU": settings.cpus} | ({"GPU": settings.gpus} if settings.gpus else {}),
        ),
        run_config=ray.train.RunConfig(
            name="train",
            storage_path=str(job.storage),
            failure_config=ray.train.FailureConfig(max_failures=settings.max_failures),
            worker_runtime_env={"env_vars": environment(settings)},
        ),
        datasets={DATASET: store.open_dataset(stores)},
        # Every worker reads all rows in order and takes its own: Ray does not split in a reproducible order.
        dataset_config=ray.train.DataConfig(
            datasets_to_split=[], execution_options=ExecutionOptions(preserve_order=True)
        ),
    )
    ended: Future[BaseException | None] = Future()

    def run() -> None:
        try:
            ended.set_result(trainer.fit().error)
        except BaseException as error:  # noqa: BLE001 - raised in the caller's thread below
            ended.set_result(error)
        reports.put(None)

    thread = threading.Thread(target=run, name="learner", daemon=True)
    thread.start()
    coming = [reports.actor.get.remote()]

    def following(timeout: float | None = None) -> Report | None:
        """Returns the next report; the same one again after a call that was interrupted."""
        report: Report | None = ray.get(coming[0], timeout=timeout)
        coming[0] = reports.actor.get.remote()
        return report

    try:
        while (report := following()) is not None:
            on_report(report)
    except KeyboardInterrupt:
        say("the learner is asked to write a checkpoint after the step in progress")
        for report in _last(stops, following):
            on_report(report)
        thread.join(_SECONDS_TO_ANSWER)  # Ray ends this process, silently, if a thread asks it while it shuts down
        raise
    for queue in (reports, stops):
        queue.shutdown(force=True)
    if (error := ended.result()) is not None:
        raise LearnerError(_cause(error)) from error


def _last(stops: Queue, following: Callable[[float], Report | None]) -> Iterator[Report]:
    """Asks the learner to stop and yields its reports until it has. Ends earlier when it does not in time, or when Ray
    does not answer, as its processes got the signal, too."""
    deadline = time.monotonic() + _SECONDS_TO_SAVE
    with suppress(RayError):
        while time.monotonic() < deadline:
            ray.get(stops.actor.put.remote(True), timeout=_SECONDS_TO_ANSWER)
            try:
                report = following(1.0)
            except GetTimeoutError:
                continue
            if report is None:
                return
            yield report


def environment(settings: Learner) -> dict[str, str]:
    variables = {"TOKENIZERS_PARALLELISM": "false"}
    if settings.gpus == 0:
        threads = str(max(1, int(settings.cpus)))
        variables |= {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": threads, "GLIBC_TUNABLES": ALLOCATOR}
    return variables


class _OneAddress(_TorchBackend):
    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        worker_group.execute(_listen_at_one_address)
        super().on_start(worker_group, backend_config)


class GroupConfig(TorchConfig):
    """Makes torch's process group store listen at its node's address only; by default it uses all interfaces."""

    @property
    def backend_cls(self) -> type:
        return _OneAddress


def _listen_at_one_address() -> None:
    # import_module, because torch.distributed.rendezvous as an attribute is a function.
    module: Any = importlib.import_module("torch.distributed.rendezvous")
    theirs = module.TCPStore

    def store(host_name: str, port: int, *, is_master: bool, **options: Any) -> Any:
        if is_master:
            family = socket.AF_INET6 if ":" in host_name else socket.AF_INET
            options["master_listen_fd"] = socket.create_server((host_name, port), family=family, backlog=4096).detach()
        return theirs(host_name, port, is_master=is_master, **options)

    module.TCPStore = store


def _cause(error: BaseException) -> str:
    """Returns the workers' own errors, each once; or else the error's text."""
    causes = []
    for failure in (getattr(error, "worker_failures", None) or {None: error}).values():
        is_dead = isinstance(getattr(failure, "health_check_failure", None), RayActorError)
        causes.append(_DEAD if is_dead else f"{type(failure).__name__}: {failure}")
    return f"training stopped: {'; '.join(dict.fromkeys(causes))}"
