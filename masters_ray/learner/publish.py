"""The student's weights on their way to the rollouts: in Ray's object store, or kept until a replica asks for them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

import ray
from ray.exceptions import RayTaskError
from torch import Tensor

from masters_ray.errors import LearnerError
from masters_ray.learner.sender import Sender
from masters_ray.weights import StudentWeights, WireTensor, tensor_digest

_PIECE = 256 * 2**20
"""Bytes of tensors that travel together."""


def publish(
    tensors: Mapping[str, Tensor], exchange: Any, version: int, began: float, sender: Sender | None = None
) -> str:
    """Hand a version of the student to the exchange. Returns its digest. tensors: a checkpoint's, on the CPU. began:
    when the learner turned to it, of ``time.monotonic``. sender: what keeps and sends them; without one they go into
    the object store. Raises LearnerError when the rollouts have failed, or when nothing can be sent any more."""
    if sender is not None:
        sender.check()
    digests = {name: tensor_digest(name, tensor) for name, tensor in tensors.items()}
    try:
        pieces = []
        if sender is None:
            pieces = [ray.get(exchange.keep.remote(piece))[0] for piece in _pieces(tensors)]
        else:
            sender.keep(version, tensors)
        weights = StudentWeights(
            version=version,
            digests=digests,
            pieces=tuple(pieces),
            seconds=time.monotonic() - began,
            exchange=None if sender is None else exchange,
        )
        needed = ray.get(exchange.publish.remote(weights))
        if sender is not None:
            sender.drop_all_but(needed)
    except RayTaskError as error:
        raise LearnerError(str(error.cause)) from error
    return weights.digest


def _pieces(tensors: Mapping[str, Tensor]) -> Iterator[list[WireTensor]]:
    piece: list[WireTensor] = []
    size = 0
    for name, tensor in tensors.items():
        piece.append(WireTensor.of(name, tensor))
        size += tensor.nbytes
        if size >= _PIECE:
            yield piece
            piece, size = [], 0
    if piece:
        yield piece
