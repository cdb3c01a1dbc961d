"""Code inside each vLLM worker: masks a checkpoint's tensors while they are loaded, and loads a student's new weights.

Both go through vLLM's loader: the engine fuses q, k and v, shards over tensor-parallel ranks and may repack matrices
after loading, so only the checkpoint's own tensors are the method's matrices.
"""

import dataclasses
import os
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from vllm.config import LoadConfig
from vllm.distributed import get_tensor_model_parallel_world_size
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.model_executor.model_loader import register_model_loader
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader
from vllm.platforms import current_platform
from vllm.utils.nccl import unpinned_nccl_env

from masters_ray.method.masks import Masker, MaskReport, tensor_digest
from masters_ray.models.weights import architecture, tensors
from masters_ray.weight_sync.stream import Invitation, received

MASKED = "masked"
"""Name of MaskedLoader as a vLLM load format; its extra configuration has the keys ratio, ratios and parts."""
_MOST_THREADS = 8


@register_model_loader(MASKED)
class MaskedLoader(DefaultModelLoader):
    """vLLM's default loader on a masked stream of tensors; sets ``model.mask_report`` to the MaskReport and
    ``model.masker`` to the Masker, which knows the thresholds of all ratios."""

    def __init__(self, load_config: LoadConfig) -> None:
        self._extra: Any = load_config.model_loader_extra_config
        self._reports: list[MaskReport] = []
        super().__init__(dataclasses.replace(load_config, load_format="auto", model_loader_extra_config={}))

    def get_all_weights(self, model_config: Any, model: Any) -> Iterator[tuple[str, Tensor]]:
        folder, extra = Path(model_config.model), self._extra
        model.masker = Masker(
            architecture(folder),
            frozenset(extra["parts"]),
            extra["ratios"],
            device=current_platform.device_type,
            threads=_threads(),
        )
        return model.masker.stream(tensors(folder), extra["ratio"], self._reports)

    def load_weights(self, model: Any, model_config: Any) -> None:
        super().load_weights(model, model_config)
        model.mask_report = self._reports[0]


def _threads() -> int:
    """Returns how many tensors this rank masks at a time: an engine on a CPU has its cores from OMP_NUM_THREADS."""
    if current_platform.is_cpu():
        return torch.get_num_threads()
    return max(1, min(_MOST_THREADS, len(os.sched_getaffinity(0)) // get_tensor_model_parallel_world_size()))


class InPlaceLoading:
    """vLLM worker extension; vLLM calls its methods by name on every worker."""

    model_runner: Any
    rank: int
    device: torch.device

    def masked_at(self, checkpoint: str, ratio: float) -> dict[str, Any]:
        """Loads ``checkpoint`` masked at ``ratio``, unless it is loaded; returns the report's fields."""
        model = self.model_runner.get_model()
        if model.mask_report is None or model.mask_report.ratio != ratio:
            model.mask_report = None  # if loading fails halfway, the next call must load again
            reports: list[MaskReport] = []
            self._reload(model.masker.stream(tensors(Path(checkpoint)), ratio, reports))
            model.mask_report = reports[0]
        return dataclasses.asdict(model.mask_report)

    def load_student(self, invitation: dict[str, Any]) -> dict[str, str]:
        """Loads a student's tensors in place from a TensorStream. invitation: an Invitation's fields. Returns tensor
        name → ``tensor_digest``, computed as the tensor goes into the model."""
        digests: dict[str, str] = {}

        def noted(stream: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
            for name, tensor in stream:
                digests[name] = tensor_digest(name, tensor)
                yield name, tensor

        # The sender, in the same group, lacks the NCCL settings that vLLM makes for its own groups.
        with unpinned_nccl_env(), closing(received(Invitation(**invitation), self.rank, self.device)) as stream:
            self._reload(noted(stream))
        return digests

    def _reload(self, stream: Iterator[tuple[str, Tensor]]) -> None:
        self.model_runner.reload_weights(weights_iterator=stream)
        if current_platform.is_cpu():
            # On CPU the head multiplies by a packed copy of its weights. A head tied to the embeddings is in no
            # checkpoint, so loading in place updates the embeddings but not the packed copy.
            for module in self.model_runner.get_model().modules():
                if isinstance(module, ParallelLMHead):
                    module.quant_method.process_weights_after_loading(module)
