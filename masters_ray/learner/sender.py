"""Rank 0's side of vLLM's weight transfer: replicas ask for a version of the student and are sent it, one by one."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Collection, Mapping
from typing import Any

import ray
import torch
from ray.exceptions import RayError
from torch import Tensor

from masters_ray.config import Transfer
from masters_ray.errors import LearnerError
from masters_ray.learner.requests import Request

_PATIENCE = 1.0
"""Seconds between two looks at whether to stop."""
_SECONDS_TO_CLOSE = 5.0
_SECONDS_AFTER_A_LOSS = 60.0
"""How long a transfer may go on after its replica's process died."""


class _Client:
    """What vLLM's sending side calls of a replica, over its actor."""

    def __init__(self, replica: Any) -> None:
        self._replica = replica
        self.lost_at: float | None = None
        """When it or its process failed, of ``time.monotonic``."""

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self._call("init_weight_transfer_engine", init_info)

    def start_weight_update(self) -> None:
        self._call("start_weight_update")

    def update_weights(self, update_info: Any) -> None:
        self._call("update_weights", update_info)

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self._call("finish_weight_update")

    def _call(self, step: str, *arguments: Any) -> None:
        try:
            ray.get(self._replica.take_in.remote(step, *arguments))
        except RayError:
            self.lost_at = time.monotonic()
            raise


class _Connection:
    """To one process of a replica."""

    def __init__(self, transfer: Transfer, request: Request, device: torch.device) -> None:
        self._transfer, self._request, self._device = transfer, request, device
        self.client = _Client(request.replica)
        self._source: Any = None
        self._engine: Any = None

    @property
    def process(self) -> str:
        """Of the replica."""
        return self._request.process

    @property
    def is_open(self) -> bool:
        """Both sides have met."""
        return self._engine is not None

    def send(self, tensors: Mapping[str, Tensor]) -> None:
        """Returns when the replica has taken them in."""
        from masters_ray.engines import vllm_transfer

        if self._source is None:
            self._source = vllm_transfer.Source(tensors, self._device)
        self._source.tensors = tensors
        try:
            if self._engine is None:
                self._engine = vllm_transfer.connect(
                    self._transfer,
                    self.client,
                    self._source,
                    address=ray.util.get_node_ip_address(),
                    ranks=self._request.ranks,
                )
            self._engine.send_weights()
        finally:
            self._source.tensors = {}

    def close(self) -> None:
        """Give up the communicator, on a thread: its other side may be dead."""
        if self._engine is not None:
            threading.Thread(target=self._engine.shutdown, name="end of a weight transfer", daemon=True).start()


class Sender:
    """Keeps the versions that rollouts may ask for, on the CPU, and sends them on a thread, while the learner steps.

    A replica that is started again asks again. One whose process dies in the middle of a transfer over NCCL leaves the
    learner's GPU waiting for it; the exchange tells every worker then, and the group has to start anew.
    """

    def __init__(self, transfer: Transfer, exchange: Any, device: torch.device) -> None:
        """exchange: an Exchange actor. device: the learner's."""
        self._transfer, self._exchange, self._own = transfer, exchange, device
        self._device = torch.device("cpu") if transfer == "gloo" else device
        self._versions: dict[int, Mapping[str, Tensor]] = {}
        self._asked = -1
        """Version that was asked for last: a replica that is started again will want it."""
        self._lock = threading.Lock()
        """Held for every look at the fields above."""
        self._connections: dict[Any, _Connection] = {}
        """By actor id."""
        self._broken: str | None = None
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
            self._versions = {
                version: tensors
                for version, tensors in self._versions.items()
                if version in needed or version == self._asked
            }

    def check(self) -> None:
        """Raises LearnerError when nothing can be sent any more."""
        if self._broken is not None:
            raise LearnerError(self._broken)

    def close(self) -> None:
        """Serve nobody any more; a transfer that is under way may end."""
        self._closing.set()
        self._thread.join(_SECONDS_TO_CLOSE)

    def _run(self) -> None:
        try:
            while not self._closing.is_set():
                request: Request | None = ray.get(self._exchange.next_request.remote(_PATIENCE))
                if request is not None:
                    ray.get(self._exchange.answered.remote(request.number, self._serve(request)))
        except RayError as error:
            if not self._closing.is_set():
                self._broken = f"the exchange with the rollouts is gone: {error}"

    def _serve(self, request: Request) -> str | None:
        """Why a request was not served; "" when its version is not there."""
        if self._broken is not None:
            return self._broken
        with self._lock:
            tensors = self._versions.get(request.version)
            if tensors is None:
                return ""
            self._asked = request.version
        connection = self._connection(request)
        try:
            self._watched(connection, tensors)
        except Exception as error:  # noqa: BLE001 - told to the replica, which waits
            del self._connections[request.replica._actor_id]
            if self._broken is None:
                connection.close()
            return f"{type(error).__name__}: {error}"
        return None

    def _connection(self, request: Request) -> _Connection:
        """The one to the replica's process; that to an earlier process is closed."""
        actor = request.replica._actor_id
        there = self._connections.get(actor)
        if there is None or there.process != request.process:
            if there is not None:
                there.close()
            self._connections[actor] = _Connection(self._transfer, request, self._device)
        return self._connections[actor]

    def _watched(self, connection: _Connection, tensors: Mapping[str, Tensor]) -> None:
        """Send on a thread of its own, which is left alone when it does not end after its replica was lost."""
        ended: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()

        def act() -> None:
            try:
                if self._own.type == "cuda":
                    torch.cuda.set_device(self._own)
                connection.send(tensors)
            except BaseException as error:  # noqa: BLE001 - raised on the thread that waits
                ended.put(error)
            else:
                ended.put(None)

        threading.Thread(target=act, name="one weight transfer", daemon=True).start()
        while True:
            try:
                error = ended.get(timeout=_PATIENCE)
            except queue.Empty:
                self._look_after(connection)
                continue
            if error is not None:
                raise error
            return

    def _look_after(self, connection: _Connection) -> None:
        """Raises LearnerError when a transfer has gone on for too long after its replica was lost."""
        lost_at = connection.client.lost_at
        if lost_at is None or time.monotonic() - lost_at < _SECONDS_AFTER_A_LOSS:
            return
        if not connection.is_open:
            raise LearnerError("the replica was lost before anything was sent")
        self._broken = (
            f"a replica died while it was sent weights over {self._transfer}, and the transfer does not end. The same "
            "command goes on from the last checkpoint; with learner.max_failures above 0 the learner does so by itself."
        )
        ray.get(self._exchange.stop_learner.remote(self._broken))
        raise LearnerError(self._broken)
