"""Which versions of the student the worker group hands out to the rollouts, and when."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import ray
import torch
from ray.exceptions import RayTaskError

from masters_ray.engines import adapters, hf
from masters_ray.errors import LearnerError
from masters_ray.learner.engine import StudentEngine
from masters_ray.learner.job import LearnerJob
from masters_ray.learner.publish import publish
from masters_ray.learner.sender import Sender
from masters_ray.schedule import version_for


class Handout:
    """One rank's part: all gather the weights, rank 0 hands them out. Does nothing for a job without online
    iterations."""

    def __init__(
        self, job: LearnerJob, exchange: Any, engine: StudentEngine, folder: Path, rank: int, device: torch.device
    ) -> None:
        """exchange: an Exchange actor, or None. folder: the checkpoint whose tensors' names the rollouts know."""
        self._job, self._exchange, self._engine = job, exchange, engine
        self._folder, self._rank = folder, rank
        self._wanted: set[int] = set()
        self._sender: Sender | None = None
        if exchange is not None and rank == 0 and job.transfer != "object_store":
            self._sender = Sender(job.transfer, exchange, device)
        self.students: dict[int, str] = {}
        """Rank 0: version → digest of those that were handed out, as far as what they wrote may still be wanted."""

    def begin(self, done: int) -> None:
        """Tell the rollouts how far the student is, and hand them the weights that they write with first."""
        if self._exchange is None:
            return
        job = self._job
        self._wanted = {version_for(number, job.max_staleness, done) for number in job.online if number > done}
        if self._rank == 0:
            ask(self._exchange, "begin", done, self.students)
        # Nobody may ask for rows before: they could be those of workers that were lost.
        self._engine.over_workers(torch.zeros(1))
        self.publish(done)

    def publish(self, number: int) -> None:
        """The student after ``number`` iterations, if it writes for one that comes."""
        if number not in self._wanted:
            return
        began, settings = time.monotonic(), self._job.settings
        state = self._engine.trained_state(keep=self._rank == 0)
        if self._rank == 0:
            if settings.lora.rank:
                state = adapters.merged(state, self._folder, settings.lora)
            tensors = hf.in_checkpoint(state, self._folder, settings.dtype)
            self.students[number] = publish(tensors, self._exchange, number, began, self._sender)

    def forget_before(self, number: int) -> None:
        """What students wrote that are older than iteration ``number`` may have is not wanted any more."""
        oldest = number - self._job.max_staleness
        self.students = {version: digest for version, digest in self.students.items() if version >= oldest}

    def close(self) -> None:
        """Hand out nothing any more."""
        if self._sender is not None:
            self._sender.close()


def ask(exchange: Any, method: str, *arguments: Any) -> Any:
    """What an Exchange actor answers. Raises LearnerError with its words."""
    try:
        return ray.get(getattr(exchange, method).remote(*arguments))
    except RayTaskError as error:
        raise LearnerError(str(error.cause)) from error
