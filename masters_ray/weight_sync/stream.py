"""Sends tensors from one process to all workers of an engine, in a process group made for the transfer.

The sender is rank 0; the engine's workers are ranks 1 to N. They meet in the group's store (here/1 … here/N, done/1 …
done/N). Tensor n is told there under "n" as {"name": "w", "dtype": "bfloat16", "shape": [3, 4]}, and its bytes are
broadcast, one tensor at a time: each end needs memory for one more tensor. null is the end.

No end waits forever: one that is silent for two minutes counts as dead, and the other aborts the group, which frees a
GPU that waits in NCCL.
"""

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

Backend = Literal["nccl", "gloo"]  # nccl: GPU to GPU; gloo: CPU to CPU on one host

_SILENCE = timedelta(seconds=120)
_WATCHDOG = timedelta(minutes=10)  # time after which NCCL's watchdog ends a process whose group could not be aborted


@dataclass(frozen=True, kw_only=True)
class Invitation:
    """Address at which a sender waits for an engine's workers, ``ranks`` in number."""

    address: str
    port: int
    ranks: int
    backend: Backend


class TensorStream:
    def __init__(self, address: str, ranks: int, backend: Backend) -> None:
        """address: this host's, reachable from the engine's workers, ``ranks`` in number."""
        self._store = TCPStore(address, 0, is_master=True, wait_for_workers=False, timeout=_SILENCE)
        self._ranks = range(1, 1 + ranks)
        self.invitation = Invitation(address=address, port=self._store.port, ranks=ranks, backend=backend)

    def send(self, tensors: Iterable[tuple[str, Tensor]], device: torch.device | str = "cpu") -> None:
        """Sends all tensors; returns when every worker has received them. device: sends them; a GPU for nccl. Raises
        RuntimeError when a worker does not join, is lost or is silent. The workers can read the reason of any failure
        here while this object lives."""
        number = 0
        try:
            self._store.wait([f"here/{rank}" for rank in self._ranks])  # NCCL would wait forever for one that is not
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
    """Receives on a worker: yields every (name, tensor) sent, on ``device`` with nccl, on the CPU with gloo. rank: the
    worker's, from 0. Raises RuntimeError when the sender fails, is lost or is silent."""
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
    """Yields the process group; aborts it when the block ends in an error."""
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
    """Broadcasts a contiguous tensor from rank 0. Raises RuntimeError when the other end is lost or silent."""
    options = BroadcastOptions()
    options.rootRank = 0
    work = group.broadcast([tensor.view(-1).view(torch.uint8)], options)
    until = time.monotonic() + _SILENCE.total_seconds()
    while not work.is_completed():
        if time.monotonic() > until:
            raise RuntimeError(f"the other end of a weight transfer was silent for {_SILENCE.total_seconds():g} s")
        time.sleep(0.0005)
    work.wait()
