"""The learner's side of weight sync: publishes versions of the student, and sends them to replicas that ask."""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import ray
import torch
from ray.exceptions import RayError
from torch import Tensor

from masters_ray.method.masks import tensor_digest
from masters_ray.method.schedule import version_for
from masters_ray.weight_sync.broker import WeightRequest, ask
from masters_ray.weight_sync.stream import Backend, TensorStream
from masters_ray.weight_sync.student_weights import StudentWeights, pieces

_PATIENCE = 1.0  # seconds between checks for ``close``


class WeightSender:
    """Keeps versions that replicas may ask for on the CPU; a thread sends them to one replica after the other. It
    ignores a failed transfer: the replica reports it, and the process in its place asks again."""

    def __init__(self, broker: Any, device: torch.device, backend: Backend) -> None:
        """broker: a RolloutBroker actor. device: the learner's, over which tensors are sent."""
        self._broker, self._device, self._backend = broker, device, backend
        self._versions: dict[int, Mapping[str, Tensor]] = {}
        self._asked = -1  # version requested last: a restarted replica will request it again
        self._lock = threading.Lock()  # guards the fields above
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="weight transfer", daemon=True)
        self._thread.start()

    def retain(self, version: int, tensors: Mapping[str, Tensor], oldest: int) -> None:
        """Keeps a version for requests; forgets those before ``oldest``, but for the one requested last."""
        with self._lock:
            kept = {one: held for one, held in self._versions.items() if one >= oldest or one == self._asked}
            self._versions = {**kept, version: tensors}

    def close(self) -> None:
        """Stops serving; waits up to 5 s for a transfer in progress."""
        self._closing.set()
        self._thread.join(5.0)

    def _run(self) -> None:
        try:
            if self._device.type == "cuda":
                torch.cuda.set_device(self._device)
            while not self._closing.is_set():
                request: WeightRequest | None = ray.get(self._broker.next_request.remote(_PATIENCE))
                if request is not None:
                    self._serve(request)
        except RayError:
            return  # the broker is gone, so no replica can ask
        except Exception as error:  # noqa: BLE001 - reported to the learner and to all waiting calls
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
        with suppress(RuntimeError):  # the workers fail too: they read the reason from the stream, so it is kept alive
            self._stream.send(tensors.items(), self._device)


class WeightPublisher:
    """All workers gather the versions, rank 0 publishes them. Does nothing without a broker."""

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
        """broker: a RolloutBroker actor, or None. online: numbers of the online iterations. gather: called by all
        workers; returns the student as checkpoint tensors on rank 0's CPU, None elsewhere. barrier: returns when all
        workers have called it. sender: rank 0's, if the learner itself sends weights to replicas."""
        self._broker, self._online, self._max_staleness = broker, online, max_staleness
        self._gather, self._barrier, self._rank, self._sender = gather, barrier, rank, sender
        self._wanted: set[int] = set()
        self.students: dict[int, str] = {}
        """On rank 0: version → digest of the published versions whose rows may still be used."""

    def begin(self, done: int) -> None:
        """Tells the broker that ``done`` iterations are learned, and publishes that version if it writes for any."""
        if self._broker is None:
            return
        self._wanted = {version_for(number, self._max_staleness, done) for number in self._online if number > done}
        if self._rank == 0:
            ask(self._broker, "begin", done, self.students)
        # No worker may ask for rows before this: they could be rows for the previous start's workers.
        self._barrier()
        self.publish(done)

    def publish(self, number: int) -> None:
        """Publishes the version if it writes for a later iteration. Raises LearnerError when rollouts have failed."""
        oldest = number - self._max_staleness
        self.students = {version: digest for version, digest in self.students.items() if version >= oldest}
        if number not in self._wanted:
            return
        began = time.monotonic()
        tensors = self._gather()
        if tensors is None:
            return
        stored: list[Any] = []
        digests = {name: tensor_digest(name, tensor) for name, tensor in tensors.items()}
        if self._sender is None:
            stored = [ask(self._broker, "put_piece", piece)[0] for piece in pieces(tensors.items())]
        else:
            self._sender.retain(number, tensors, oldest)
        weights = StudentWeights(
            version=number, digests=digests, pieces=tuple(stored), seconds=time.monotonic() - began, broker=self._broker
        )
        ask(self._broker, "publish", weights)
        self.students[number] = weights.digest

    def close(self) -> None:
        if self._sender is not None:
            self._sender.close()
