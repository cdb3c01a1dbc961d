"""vLLM's own weight transfer between the learner and an engine, with a digest of each tensor as it goes into the model.

    nccl    from the learner's GPU to the engine's
    ipc     on one GPU, which both use
    gloo    from CPU to CPU; vLLM has none, so both of its sides are here

The learner's side drives it: it connects to a replica (``connect``), and every ``send_weights`` goes through the
replica's ``start_weight_update``, ``update_weights`` and ``finish_weight_update``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from vllm.distributed.weight_transfer.base import (
    ParamMeta,
    TrainerWeightTransferEngine,
    VLLMWeightSyncClient,
    WeightSource,
    WeightTransferEngine,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory, WeightTransferTrainerFactory
from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo, IPCWeightTransferEngine
from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo, NCCLWeightTransferEngine
from vllm.utils.network_utils import get_open_port

from masters_ray.config import Transfer
from masters_ray.engines.vllm_gloo import GlooEngine, GlooTrainerEngine, GlooTrainerInit
from masters_ray.engines.vllm_head import renew_head
from masters_ray.weights import tensor_digest

_BUFFER = 256 * 2**20
"""Bytes of tensors that travel together; the learner's GPU holds a few times as much meanwhile."""


def backend(transfer: Transfer) -> str:
    """What vLLM calls the receiving side of a transfer, for its ``weight_transfer_config``."""
    return f"masters_{transfer}"


class _Noting:
    """A model that notes what it loads."""

    def __init__(self, model: Any, digests: dict[str, str]) -> None:
        self._model, self._digests = model, digests

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> Any:
        return self._model.load_weights(self._noted(weights))

    def _noted(self, weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in weights:
            self._digests[name] = tensor_digest(name, tensor)
            yield name, tensor


class Digesting(WeightTransferEngine):
    """A receiving side that knows the ``tensor_digest`` of everything that went into the model in an update."""

    model: Any
    digests: dict[str, str]
    """By name, of the last update."""

    def start_weight_update(self) -> None:
        self.digests = {}
        super().start_weight_update()

    def receive_weights(self, update_info: Any) -> None:
        target, self.model = self.model, _Noting(self.model, self.digests)
        try:
            super().receive_weights(update_info)
        finally:
            self.model = target

    def finish_weight_update(self) -> None:
        super().finish_weight_update()
        renew_head(self.model)


class DigestingNccl(Digesting, NCCLWeightTransferEngine):
    """From GPU to GPU."""


class DigestingIpc(Digesting, IPCWeightTransferEngine):
    """On one GPU."""


class DigestingGloo(Digesting, GlooEngine):
    """Between CPUs."""


WeightTransferEngineFactory.register_engine(backend("nccl"), DigestingNccl)
WeightTransferEngineFactory.register_engine(backend("ipc"), DigestingIpc)
WeightTransferEngineFactory.register_engine(backend("gloo"), DigestingGloo)
WeightTransferTrainerFactory.register_engine(GlooTrainerInit.backend, GlooTrainerEngine)


class Source(WeightSource):
    """What the learner sends: a version of the student that lies on the CPU, moved to a device tensor by tensor."""

    def __init__(self, tensors: Mapping[str, Tensor], device: torch.device) -> None:
        """tensors: named as in the checkpoint; may be put in place of others of the same shapes."""
        self.tensors = tensors
        self._device = device

    def metadata(self) -> list[ParamMeta]:
        return [ParamMeta(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in self.tensors.items()]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in self.tensors.items():
            yield name, tensor.to(self._device)


def connect(
    transfer: Transfer, client: VLLMWeightSyncClient, source: Source, *, address: str, ranks: int
) -> TrainerWeightTransferEngine:
    """The sending side of a connection to one replica, which is told to join.

    address: of this host, as the replica's sees it. ranks: tensor-parallel ones of the replica.
    """
    if transfer == "ipc":
        largest = max(tensor.nbytes for tensor in source.tensors.values())
        start: Any = IPCTrainerInitInfo(rank=0, packed=True, packed_buffer_size_bytes=max(_BUFFER, largest))
    elif transfer == "nccl":
        start = NCCLTrainerInitInfo(address, get_open_port(), 1 + ranks, rank=0, packed_buffer_size_bytes=_BUFFER)
    else:
        start = GlooTrainerInit(address, get_open_port(), 1 + ranks, rank=0)
    return WeightTransferTrainerFactory.trainer_init(start, client=client, source=source)
