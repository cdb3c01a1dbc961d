"""Tensors from one process into all workers of an engine: a process group for one transfer.

The sending end is rank 0; the engine's workers are ranks 1 to N. Name, dtype and shape of each tensor go through the
group's store, its bytes by broadcast, one tensor after the other: neither end holds more than one beside what it had.

    sender                            store                              each worker
    TensorStream(address, ranks)      here/1 … here/N          ◄──────   received(invitation, rank)
    send(tensors)                ──►  0: {"name": "w", "dtype": "bfloat16", "shape": [3, 4]}
                                      …                        ──────►   take part in the broadcast, yield "w"
                                 ──►  n: null                  ──────►   the end
                                      done/1 … done/N          ◄──────

A side that is silent for two minutes counts as dead: the group is aborted, which frees a GPU that waits in NCCL.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

import torch
from torch import Tensor
from torch.distributed import BroadcastOptions, ProcessGroupGloo, TCPStore

Backend = Literal["nccl", "gloo"]
"""nccl: from GPU to GPU; gloo: from CPU to CPU of one host."""

_SILENCE = timedelta(seconds=120)
_WATCHDOG = timedelta(minutes=10)
"""After this NCCL's own watchdog ends a process whose group could not be aborted."""
_SECONDS_BETWEEN_LOOKS = 0.0005


@dataclass(frozen=True, kw_only=True)
class Invitation:
    """Where a sending end waits for the workers of an engine."""

    address: str
    port: int
    ranks: int
    """The engine's workers."""
    backend: Backend


class TensorStream:
    """The sending end."""

    def __init__(self, address: str, ranks: int, backend: Backend) -> None:
        """address: of this host, as the workers' host sees it. ranks: the engine's workers."""
        self._store = TCPStore(address, 0, is_master=True, wait_for_workers=False, timeout=_SILENCE)
        self._ranks = range(1, 1 + ranks)
        self.invitation = Invitation(address=address, port=self._store.port, ranks=ranks, backend=backend)

    def send(self, tensors: Iterable[tuple[str, Tensor]], device: torch.device | str = "cpu") -> None:
        """Returns when every worker has taken in all tensors; each goes over ``device``, which a GPU must be for nccl.

        Raises RuntimeError when a worker does not come, is lost or is silent. What fails here is told to the workers as
        long as this object lives.
        """
        number = 0
        try:
            # NCCL would wait for ever for a worker that does not come.
            self._store.wait([f"here/{rank}" for rank in self._ranks])
            with _group(self.invitation, self._store, 0) as group:
                for name, tensor in tensors:
                    whole = tensor.to(device).contiguous()
                    dtype = str(whole.dtype).removeprefix("torch.")
                    self._tell(number, {"name": name, "dtype": dtype, "shape": list(whole.shape)})
                    number += 1
                    _broadcast(group, whole)
                self._tell(number, None)
                self._store.wait([f"done/{rank}" for rank in self._ranks])
        except Exception as error:
            self._tell(number, {"failed": f"{type(error).__name__}: {error}"})
            raise

    def _tell(self, number: int, what: dict[str, Any] | None) -> None:
        self._store.set(str(number), json.dumps(what))


def received(invitation: Invitation, rank: int, device: torch.device) -> Generator[tuple[str, Tensor]]:
    """A worker's end: every (name, tensor) that is sent, on ``device`` over nccl, on the CPU over gloo. rank: of the
    worker, from 0. Raises RuntimeError when the sender fails, is lost or is silent."""
    store = TCPStore(invitation.address, invitation.port, is_master=False, wait_for_workers=False, timeout=_SILENCE)
    store.set(f"here/{1 + rank}", "")
    place = torch.device("cpu") if invitation.backend == "gloo" else device
    with _group(invitation, store, 1 + rank) as group:
        for number in itertools.count():
            told = json.loads(store.get(str(number)))
            if told is None:
                break
            if "failed" in told:
                raise RuntimeError(f"the sender of the weights failed: {told['failed']}")
            tensor = torch.empty(told["shape"], dtype=getattr(torch, told["dtype"]), device=place)
            _broadcast(group, tensor)
            yield told["name"], tensor
        store.set(f"done/{1 + rank}", "")


@contextmanager
def _group(invitation: Invitation, store: TCPStore, rank: int) -> Iterator[Any]:
    """The process group during the block; aborted when the block is left by an error."""
    size = 1 + invitation.ranks
    group: Any
    if invitation.backend == "gloo":
        group = ProcessGroupGloo(store, rank, size, _SILENCE)
    else:
        from torch.distributed import ProcessGroupNCCL

        options = ProcessGroupNCCL.Options()
        options._timeout = _WATCHDOG
        group = ProcessGroupNCCL(store, rank, size, options)
    try:
        yield group
    except BaseException:
        group.abort()
        raise
    group.shutdown()


def _broadcast(group: Any, tensor: Tensor) -> None:
    """tensor: contiguous; rank 0's, or what takes in its bytes. Raises RuntimeError when the other end is lost, and
    when it is silent."""
    options = BroadcastOptions()
    options.rootRank = 0
    work = group.broadcast([tensor.view(-1).view(torch.uint8)], options)
    until = time.monotonic() + _SILENCE.total_seconds()
    while not work.is_completed():
        if time.monotonic() > until:
            raise RuntimeError(f"the other end of a weight transfer was silent for {_SILENCE.total_seconds():g} s")
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    work.wait()
