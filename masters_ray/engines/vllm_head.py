"""What a model's head needs after its weights were put in place of others."""

from __future__ import annotations

from typing import Any

from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.platforms import current_platform


def renew_head(model: Any) -> None:
    """On CPU the head multiplies by a packed copy of its weights. A head that is tied to the embeddings is in no
    checkpoint, so that loading in place renews the embeddings and leaves the copy as it was."""
    if current_platform.is_cpu():
        for module in model.modules():
            if isinstance(module, ParallelLMHead):
                module.quant_method.process_weights_after_loading(module)
