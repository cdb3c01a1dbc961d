"""Rank 0's side of vLLM's weight transfer: replicas ask for a version of the student and are sent it, one by one."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Collection, Mapping
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

    def __init__(
        self, transfer: Transfer, request: Request, tensors: Mapping[str, Tensor], device: torch.device
    ) -> None:
        from masters_ray.engines import vllm_transfer

        self.process = request.process
        self.client = _Client(request.replica)
        self._source = vllm_transfer.Source(tensors, device)
        self._open = lambda: vllm_transfer.connect(
            transfer, self.client, self._source, address=ray.util.get_node_ip_address(), ranks=request.ranks
        )
        self._engine: Any = None

    def send(self, tensors: Mapping[str, Tensor]) -> None:
        """Returns when the replica has taken them in."""
        self._source.tensors = tensors
        if self._engine is None:
            self._engine = self._open()
        self._engine.send_weights()


class Sender:
    """Keeps the versions that rollouts may ask for, on the CPU, and sends them on a thread, while the learner steps.

    A replica that is started again asks again. One whose process dies in the middle of a transfer over NCCL leaves the
    learner's GPU waiting for it; ``check`` tells then, and the worker group has to start anew.
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
            while not self._closing.is_set() and self._broken is None:
                request: Request | None = ray.get(self._exchange.next_request.remote(_PATIENCE))
                if request is not None:
                    ray.get(self._exchange.answered.remote(request.number, self._serve(request)))
        except RayError as error:
            if not self._closing.is_set():
                self._broken = f"the exchange with the rollouts is gone: {error}"

    def _serve(self, request: Request) -> str | None:
        """Why a request was not served; "" when its version is not there."""
        with self._lock:
            tensors = self._versions.get(request.version)
            if tensors is None:
                return ""
            self._asked = request.version
        actor = request.replica._actor_id
        connection = self._connections.get(actor)
        if connection is None or connection.process != request.process:
            connection = _Connection(self._transfer, request, tensors, self._device)
            self._connections[actor] = connection
        try:
            self._watched(connection.client, lambda: connection.send(tensors))
        except Exception as error:  # noqa: BLE001 - told to the replica, which waits
            del self._connections[actor]
            return f"{type(error).__name__}: {error}"
        return None

    def _watched(self, client: _Client, action: Callable[[], None]) -> None:
        """``action`` on a thread of its own, which is left alone when it does not end after its replica was lost."""
        ended: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()

        def act() -> None:
            try:
                if self._own.type == "cuda":
                    torch.cuda.set_device(self._own)
                action()
            except BaseException as error:  # noqa: BLE001 - raised on the thread that waits
                ended.put(error)
            else:
                ended.put(None)

        threading.Thread(target=act, name="one weight transfer", daemon=True).start()
        while True:
            try:
                error = ended.get(timeout=_PATIENCE)
            except queue.Empty:
                if client.lost_at is None or time.monotonic() - client.lost_at < _SECONDS_AFTER_A_LOSS:
                    continue
                self._broken = (
                    f"a replica died while it was sent weights over {self._transfer}, and the transfer does not end. "
                    "The same command goes on from the last checkpoint; with learner.max_failures above 0 the learner "
                    "does so by itself."
                )
                raise LearnerError(self._broken) from None
            if error is not None:
                raise error
            return
