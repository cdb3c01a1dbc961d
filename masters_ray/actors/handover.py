"""Weights of a student that learns, taken in by a replica and compared with what was sent."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator

import ray
from ray.exceptions import RayTaskError
from torch import Tensor

from masters_ray.engines.vllm_engine import VllmEngine
from masters_ray.errors import MastersError, ReplicaLostError, WeightsGoneError, WeightSyncError
from masters_ray.weights import StudentWeights, WireTensor, joint_digest

_NAMED = 3
"""Tensors that an error names."""


class Held:
    """Which version of the student an engine holds."""

    def __init__(self, engine: VllmEngine, ranks: int) -> None:
        """ranks: tensor-parallel ones of the engine."""
        self._engine, self._ranks = engine, ranks
        self._process = uuid.uuid4().hex
        self._version: tuple[int, str] | None = None
        self._taking = threading.Lock()

    def take(self, weights: StudentWeights) -> None:
        """Have the engine hold these weights, unless it does.

        Raises WeightSyncError when what went into the model is something else, WeightsGoneError when the learner that
        has them is gone, ReplicaLostError when the model is left half old, half new.
        """
        with self._taking:
            wanted = weights.version, weights.digest
            if self._version == wanted:
                return
            self._version = None
            compare(weights, self._engine.load(_tensors(weights)) if weights.pieces else self._fetched(weights))
            self._version = wanted

    def _fetched(self, weights: StudentWeights) -> dict[str, str]:
        """Digests of what the learner has sent this engine, through ``Host.take_in``."""
        me = ray.get_runtime_context().current_actor
        try:
            ray.get(weights.exchange.fetch.remote(weights.version, me, self._process, self._ranks))
        except RayTaskError as error:
            if isinstance(error.cause, WeightsGoneError) and self._engine.receiving:
                raise ReplicaLostError(f"{error.cause}, in the middle of a transfer") from error
            if isinstance(error.cause, MastersError):
                raise error.cause from error
            raise
        return self._engine.received()


def compare(sent: StudentWeights, received: dict[str, str]) -> None:
    """Raises WeightSyncError with both sides' digests when a tensor is missing, added or changed."""
    if received == sent.digests:
        return
    names = sorted(sent.digests.keys() | received.keys())
    different = [name for name in names if sent.digests.get(name) != received.get(name)]
    told = "; ".join(
        f"{name}: {_short(sent.digests.get(name))} sent, {_short(received.get(name))} received"
        for name in different[:_NAMED]
    )
    raise WeightSyncError(
        f"version {sent.version} of the student arrived with other weights: {joint_digest(received)} instead of "
        f"{sent.digest}, in {len(different)} of {len(names)} tensors ({told}). Nothing was learned from them; the same "
        "command goes on from the last checkpoint. If it happens again, look for failing memory or network."
    )


def _short(digest: str | None) -> str:
    return digest[:16] if digest else "nothing"


def _tensors(weights: StudentWeights) -> Iterator[tuple[str, Tensor]]:
    for reference in weights.pieces:
        piece: list[WireTensor] = ray.get(reference)
        yield from ((one.name, one.tensor()) for one in piece)
