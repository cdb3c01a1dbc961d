"""A replica's side of weight sync: loads a version of the student into its engine, and compares all digests."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import ray
from safetensors.torch import load

from masters_ray.weight_sync.broker import ask
from masters_ray.weight_sync.stream import Invitation, TensorStream
from masters_ray.weight_sync.student_weights import StudentWeights


class WeightReceiver:
    def __init__(self, load_engine: Callable[[Invitation], dict[str, str]], ranks: int) -> None:
        """load_engine: loads on all ``ranks`` workers of the engine; returns name → ``tensor_digest`` as loaded."""
        self._load_engine, self._ranks = load_engine, ranks
        self._version: tuple[int, str] | None = None
        self._taking = threading.Lock()

    def hold(self, weights: StudentWeights) -> None:
        """Loads these weights into the engine, unless it holds them already.

        Raises WeightSyncError when the loaded tensors differ from those published, WeightsGoneError when the learner
        that had them is gone, ReplicaLostError when loading failed and the model may be half old, half new.
        """
        with self._taking:
            wanted = weights.version, weights.digest
            if self._version == wanted:
                return
            self._version = None
            if weights.pieces:
                digests = self._from_store(weights)
            else:
                digests = self._load_engine(ask(weights.broker, "fetch", weights.version, self._ranks))
            weights.check(digests)
            self._version = wanted

    def _from_store(self, weights: StudentWeights) -> dict[str, str]:
        """Reads the pieces in this process and sends the tensors to the engine's workers, which learn of a failure."""
        stream = TensorStream("127.0.0.1", self._ranks, "gloo")
        thread = ThreadPoolExecutor(1, "weights to the engine")
        tensors = (pair for reference in weights.pieces for pair in load(ray.get(reference)).items())
        sent = thread.submit(stream.send, tensors)
        thread.shutdown(wait=False)
        digests = self._load_engine(stream.invitation)
        sent.result()
        return digests
