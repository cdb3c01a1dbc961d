"""Weight transfer between CPUs for vLLM, which has none: both sides, over gloo."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.distributed import BroadcastOptions
from vllm.distributed.utils import stateless_init_torch_distributed_process_group
from vllm.distributed.weight_transfer.base import (
    TrainerInitInfo,
    TrainerWeightTransferEngine,
    VLLMWeightSyncClient,
    WeightSource,
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

_PATIENCE = timedelta(seconds=120)
"""Longest silence of the other side before it counts as dead."""


@dataclass
class GlooInit(WeightTransferInitInfo):
    """Where the sending side waits for a replica's ranks."""

    address: str
    port: int
    world_size: int
    """The sending side and all ranks of the replica."""


@dataclass
class GlooUpdate(WeightTransferUpdateInfo):
    """What comes, in its order."""

    names: list[str]
    dtype_names: list[str]
    shapes: list[list[int]]


@dataclass
class GlooTrainerInit(TrainerInitInfo):
    """Where the sending side waits; fields as in GlooInit."""

    backend: ClassVar[str] = "gloo"

    address: str
    port: int
    world_size: int


class _Group:
    """The sending side, rank 0, and a replica's ranks."""

    def __init__(self, address: str, port: int, rank: int, world_size: int) -> None:
        self._group: Any = stateless_init_torch_distributed_process_group(
            address, port, rank, world_size, backend="gloo", timeout=_PATIENCE
        )

    def broadcast(self, tensor: Tensor) -> None:
        """tensor: contiguous; the sending side's, or what takes in its bytes."""
        options = BroadcastOptions()
        options.rootRank, options.timeout = 0, _PATIENCE
        self._group.broadcast([tensor.view(-1).view(torch.uint8)], options).wait()


class GlooEngine(WeightTransferEngine):
    """The receiving side, in a worker of a vLLM engine."""

    init_info_cls = GlooInit
    update_info_cls = GlooUpdate
    _group: _Group | None = None

    def init_transfer_engine(self, init_info: GlooInit) -> None:
        """Join the sending side's group."""
        rank = 1 + self.parallel_config.rank
        self._group = _Group(init_info.address, init_info.port, rank, init_info.world_size)

    def start_weight_update(self) -> None:
        """Have the model ready for a whole checkpoint, layer by layer."""
        initialize_layerwise_reload(self.model)

    def finish_weight_update(self) -> None:
        """The layers become what the model works with."""
        finalize_layerwise_reload(self.model, self.model_config)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Take in and load what the sending side broadcasts; returns when it is in place."""
        self.receive_weights(self.parse_update_info(update_info))

    def receive_weights(self, update_info: GlooUpdate) -> None:
        """As ``update_weights``. Raises RuntimeError when no sending side was joined, or when it is silent."""
        if self._group is None:
            raise RuntimeError("no sending side was joined")
        self.model.load_weights(self._arriving(self._group, update_info))

    def _arriving(self, group: _Group, update: GlooUpdate) -> Iterator[tuple[str, Tensor]]:
        for name, dtype, shape in zip(update.names, update.dtype_names, update.shapes, strict=True):
            tensor = torch.empty(shape, dtype=getattr(torch, dtype), device="cpu")
            group.broadcast(tensor)
            yield name, tensor.to(self.device)

    def shutdown(self) -> None:
        """Leave the group."""
        self._group = None


class GlooTrainerEngine(TrainerWeightTransferEngine[GlooTrainerInit]):
    """The sending side."""

    init_info_cls = GlooTrainerInit

    def __init__(self, *, client: VLLMWeightSyncClient, source: WeightSource, group: _Group) -> None:
        super().__init__(client=client, source=source)
        self._source, self._group = source, group

    @classmethod
    def trainer_init(
        cls, init_info: GlooTrainerInit, *, client: VLLMWeightSyncClient, source: WeightSource | None = None
    ) -> GlooTrainerEngine:
        """Have the replica's ranks join. Raises RuntimeError when they do not."""
        if source is None:
            raise ValueError("expected a source of weights")
        place = init_info.address, init_info.port
        told = asdict(GlooInit(*place, init_info.world_size))
        with ThreadPoolExecutor(1) as thread:
            joined = thread.submit(client.init_weight_transfer_engine, told)
            group = _Group(*place, 0, init_info.world_size)
            joined.result()
        return cls(client=client, source=source, group=group)

    def send_weights(self) -> None:
        """All of the source's tensors, taken in by the replica when this returns."""
        declared = self._source.metadata()
        update = GlooUpdate(
            names=[one.name for one in declared],
            dtype_names=[str(one.dtype).removeprefix("torch.") for one in declared],
            shapes=[list(one.shape) for one in declared],
        )
        self.client.start_weight_update()
        with ThreadPoolExecutor(1) as thread:
            taken = thread.submit(self.client.update_weights, asdict(update))
            try:
                for _, tensor in self._source:
                    self._group.broadcast(tensor.contiguous())
            except RuntimeError as error:
                if (cause := taken.exception()) is not None:
                    raise cause from error
                raise
            taken.result()
        self.client.finish_weight_update()
