"""A replica's side of weight sync: its engine takes in a version of the student, compared with what was sent."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import ray
from ray.exceptions import RayTaskError
from safetensors.torch import load
from torch import Tensor

from masters_ray.errors import MastersError
from masters_ray.weight_sync.stream import Invitation, TensorStream
from masters_ray.weight_sync.student_weights import StudentWeights

_THIS_HOST = "127.0.0.1"


class WeightReceiver:
    """Which version of the student an engine holds."""

    def __init__(self, load_engine: Callable[[Invitation], dict[str, str]], ranks: int) -> None:
        """load_engine: has all of the engine's workers take the tensors in; returns the ``tensor_digest`` of each, as
        it went into the model. ranks: the workers."""
        self._load_engine, self._ranks = load_engine, ranks
        self._version: tuple[int, str] | None = None
        self._taking = threading.Lock()

    def hold(self, weights: StudentWeights) -> None:
        """Have the engine hold these weights, unless it does.

        Raises WeightSyncError when what went into the model is something else, WeightsGoneError when the learner that
        had them is gone, ReplicaLostError when the model is left half old, half new.
        """
        with self._taking:
            wanted = weights.version, weights.digest
            if self._version != wanted:
                self._version = None
                weights.check(self._from_store(weights) if weights.pieces else self._from_learner(weights))
                self._version = wanted

    def _from_store(self, weights: StudentWeights) -> dict[str, str]:
        """This process reads the pieces and sends them to the engine's workers, which are told when that fails."""
        stream = TensorStream(_THIS_HOST, self._ranks, "gloo")
        thread = ThreadPoolExecutor(1, "weights to the engine")
        sent = thread.submit(stream.send, _tensors(weights))
        thread.shutdown(wait=False)
        digests = self._load_engine(stream.invitation)
        sent.result()
        return digests

    def _from_learner(self, weights: StudentWeights) -> dict[str, str]:
        try:
            invitation = ray.get(weights.broker.fetch.remote(weights.version, self._ranks))
        except RayTaskError as error:
            if isinstance(error.cause, MastersError):
                raise error.cause from error
            raise
        return self._load_engine(invitation)


def _tensors(weights: StudentWeights) -> Iterator[tuple[str, Tensor]]:
    for reference in weights.pieces:
        yield from load(ray.get(reference)).items()
