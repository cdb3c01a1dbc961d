"""A published version of the student: its digests and its pieces in the object store."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from safetensors.torch import save
from torch import Tensor

from masters_ray.errors import WeightSyncError

_PIECE = 256 * 2**20  # bytes of tensors per piece in the object store; a reading process holds one piece at a time


@dataclass(frozen=True, kw_only=True)
class StudentWeights:
    version: int  # number of iterations learned
    digests: Mapping[str, str]  # tensor's name in the checkpoint → ``tensor_digest``, as the learner computed it
    pieces: tuple[Any, ...]
    """Object store references to the output of ``pieces``; empty: replicas ask the learner through the ``broker``."""
    seconds: float  # time that the learner spent on publishing
    broker: Any = None

    @property
    def digest(self) -> str:
        """SHA-256 over all names and digests, in the order of the names."""
        told = "".join(f"{name}={self.digests[name]};" for name in sorted(self.digests))
        return hashlib.sha256(told.encode()).hexdigest()

    def check(self, received: Mapping[str, str]) -> None:
        """Raises WeightSyncError when ``received`` (name → digest) lacks, adds or changes a tensor."""
        if received == self.digests:
            return
        names = sorted(self.digests.keys() | received.keys())
        different = [name for name in names if self.digests.get(name) != received.get(name)]
        sent, arrived = (digests.get(different[0], "nothing")[:16] for digests in (self.digests, received))
        raise WeightSyncError(
            f"version {self.version} of the student arrived with other weights: {len(different)} of {len(names)} "
            f"tensors differ, such as {different[0]}: {sent} sent, {arrived} received. Nothing was learned from them; "
            "the same command goes on. If it happens again, look for failing memory or network."
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
