"""The learner's side of weight sync: which versions of the student it hands out, when, and how they get away."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from typing import Any

import ray
import torch
from ray.exceptions import RayError
from torch import Tensor

from masters_ray.method.schedule import version_for
from masters_ray.weight_sync.broker import WeightRequest, ask
from masters_ray.weight_sync.stream import Backend, TensorStream
from masters_ray.weight_sync.student_weights import StudentWeights, pieces, tensor_digest

_PATIENCE = 1.0
"""Seconds between two looks at whether to stop."""
_SECONDS_TO_CLOSE = 5.0


class WeightPublisher:
    """One worker's part: all gather the weights, rank 0 hands them out. Does nothing without online iterations."""

    def __init__(
        self,
        broker: Any,
        *,
        online: Sequence[int],
        max_staleness: int,
        gather: Callable[[], Mapping[str, Tensor] | None],
        barrier: Callable[[], None],
        rank: int,
        sender: WeightSender | None,
    ) -> None:
        """broker: a RolloutBroker actor, or None. online: the iterations that want fresh groups. gather: the student as
        a checkpoint has it, on rank 0; called by all workers together. barrier: returns when all workers have called
        it. sender: rank 0's, if replicas ask the learner for weights."""
        self._broker, self._online, self._max_staleness = broker, online, max_staleness
        self._gather, self._barrier, self._rank, self._sender = gather, barrier, rank, sender
        self._wanted: set[int] = set()
        self.students: dict[int, str] = {}
        """Rank 0: version → digest of those that were handed out, as far as what they wrote may still be wanted."""

    def begin(self, done: int) -> None:
        """Tell the rollouts how far the student is, and hand them the weights that they write with first."""
        if self._broker is None:
            return
        self._wanted = {version_for(number, self._max_staleness, done) for number in self._online if number > done}
        if self._rank == 0:
            ask(self._broker, "begin", done, self.students)
        # Nobody may ask for rows before: they could be those of workers that were lost.
        self._barrier()
        self.publish(done)

    def publish(self, number: int) -> None:
        """The student after ``number`` iterations, if it writes for one that comes."""
        if number not in self._wanted:
            return
        began = time.monotonic()
        tensors = self._gather()
        if tensors is not None:
            self.students[number] = publish(tensors, self._broker, number, began, self._sender)

    def forget_before(self, number: int) -> None:
        """What students wrote that are older than iteration ``number`` may have is not wanted any more."""
        oldest = number - self._max_staleness
        self.students = {version: digest for version, digest in self.students.items() if version >= oldest}

    def close(self) -> None:
        """Hand out nothing any more."""
        if self._sender is not None:
            self._sender.close()


def publish(
    tensors: Mapping[str, Tensor], broker: Any, version: int, began: float, sender: WeightSender | None = None
) -> str:
    """Hand a version of the student to the broker. Returns its digest. tensors: a checkpoint's, on the CPU. began:
    when the learner turned to it, of ``time.monotonic``. sender: what keeps and sends them; without one they go into
    the object store. Raises LearnerError when the rollouts have failed."""
    digests = {name: tensor_digest(name, tensor) for name, tensor in tensors.items()}
    stored = []
    if sender is None:
        stored = [ask(broker, "keep", piece)[0] for piece in pieces(tensors.items())]
    else:
        sender.keep(version, tensors)
    weights = StudentWeights(
        version=version, digests=digests, pieces=tuple(stored), seconds=time.monotonic() - began, broker=broker
    )
    needed = ask(broker, "publish", weights)
    if sender is not None:
        sender.drop_all_but(needed)
    return weights.digest


class WeightSender:
    """Keeps the versions that replicas may ask for, on the CPU, and sends them on a thread, while the learner steps.

    Replicas are served one after the other. A transfer that fails is the replica's to tell: its process is replaced and
    asks again.
    """

    def __init__(self, broker: Any, device: torch.device, backend: Backend) -> None:
        """broker: a RolloutBroker actor. device: the learner's."""
        self._broker, self._device, self._backend = broker, device, backend
        self._versions: dict[int, Mapping[str, Tensor]] = {}
        self._asked = -1
        """Version that was asked for last: a replica that is started again will want it."""
        self._lock = threading.Lock()
        """Held for every look at the fields above."""
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="weight transfer", daemon=True)
        self._thread.start()

    def keep(self, version: int, tensors: Mapping[str, Tensor]) -> None:
        """From now on ``version`` can be asked for."""
        with self._lock:
            self._versions[version] = tensors

    def drop_all_but(self, needed: Collection[int]) -> None:
        """Forget versions that write for no iteration any more, and that no replica holds."""
        with self._lock:
            kept = {*needed, self._asked}
            self._versions = {version: tensors for version, tensors in self._versions.items() if version in kept}

    def close(self) -> None:
        """Serve nobody any more; a transfer that is under way may end."""
        self._closing.set()
        self._thread.join(_SECONDS_TO_CLOSE)

    def _run(self) -> None:
        try:
            if self._device.type == "cuda":
                torch.cuda.set_device(self._device)
            while not self._closing.is_set():
                request: WeightRequest | None = ray.get(self._broker.next_request.remote(_PATIENCE))
                if request is not None:
                    self._serve(request)
        except RayError:
            return  # the broker is gone, and so is everything that would ask
        except Exception as error:  # noqa: BLE001 - told to the learner, and to whoever waits
            self._broker.fail.remote(f"the student's weights cannot be sent: {type(error).__name__}: {error}")

    def _serve(self, request: WeightRequest) -> None:
        with self._lock:
            tensors = self._versions.get(request.version)
            if tensors is not None:
                self._asked = request.version
        if tensors is None:
            ray.get(self._broker.invite.remote(request, None))
            return
        self._stream = TensorStream(ray.util.get_node_ip_address(), request.ranks, self._backend)
        ray.get(self._broker.invite.remote(request, self._stream.invitation))
        with suppress(RuntimeError):  # the workers fail too, and are told why by the stream, which is kept for that
            self._stream.send(tensors.items(), self._device)
