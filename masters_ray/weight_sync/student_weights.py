"""A published version of the student: its digests and its pieces in the object store."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from safetensors.torch import save
from torch import Tensor

from masters_ray.errors import WeightSyncError
from masters_ray.method.masks import update_digest

_PIECE = 256 * 2**20
"""Bytes of tensors per piece in the object store; a reading process holds one piece at a time."""
_NAMED = 3
"""Maximum number of tensors that an error names."""


@dataclass(frozen=True, kw_only=True)
class StudentWeights:
    """A version of the student that engines can load."""

    version: int
    """Number of iterations learned."""
    digests: Mapping[str, str]
    """Tensor's name in the checkpoint → ``tensor_digest``, as the learner computed it."""
    pieces: tuple[Any, ...]
    """Object store references to the output of ``pieces``; empty when the learner sends the tensors itself."""
    seconds: float
    """Time that the learner spent on publishing."""
    broker: Any = None
    """The RolloutBroker actor through which replicas ask the learner."""

    @property
    def digest(self) -> str:
        """SHA-256 over all names and digests, in the order of the names."""
        return _joint_digest(self.digests)

    def check(self, received: Mapping[str, str]) -> None:
        """Raises WeightSyncError when ``received`` (name → digest) lacks, adds or changes a tensor."""
        if received == self.digests:
            return
        names = sorted(self.digests.keys() | received.keys())
        different = [name for name in names if self.digests.get(name) != received.get(name)]
        told = "; ".join(
            f"{name}: {_short(self.digests.get(name))} sent, {_short(received.get(name))} received"
            for name in different[:_NAMED]
        )
        raise WeightSyncError(
            f"version {self.version} of the student arrived with other weights: {_joint_digest(received)} instead of "
            f"{self.digest}, in {len(different)} of {len(names)} tensors ({told}). Nothing was learned from them; the "
            "same command goes on from the last checkpoint. If it happens again, look for failing memory or network."
        )


def pieces(tensors: Iterable[tuple[str, Tensor]]) -> Iterator[bytes]:
    """Yields the tensors in the safetensors format, in pieces of at least 256 MiB; the last may be smaller."""
    piece: dict[str, Tensor] = {}
    for name, tensor in tensors:
        piece[name] = tensor.detach().contiguous().clone()
        if sum(one.nbytes for one in piece.values()) >= _PIECE:
            yield save(piece)
            piece = {}
    if piece:
        yield save(piece)


def tensor_digest(name: str, tensor: Tensor) -> str:
    """Returns the SHA-256 of a tensor's name, dtype, shape and bytes."""
    total = hashlib.sha256()
    update_digest(total, name, tensor)
    return total.hexdigest()


def _joint_digest(digests: Mapping[str, str]) -> str:
    return hashlib.sha256("".join(f"{name}={digests[name]};" for name in sorted(digests)).encode()).hexdigest()


def _short(digest: str | None) -> str:
    return digest[:16] if digest else "nothing"
