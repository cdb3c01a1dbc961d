"""What runs inside each vLLM worker: masking the checkpoint's tensors on their way into the model.

Masks must go in through the loader: the engine fuses q, k and v, shards over tensor-parallel ranks and may repack
matrices after loading, so that only the checkpoint's own tensors are the method's matrices.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from masters_ray.masks import MaskReport, masked
from masters_ray.weights import tensors


class MaskedLoading:
    """vLLM worker extension: its methods are called by name on every worker."""

    model_runner: Any

    def load_masked(self, checkpoint: str, ratio: float, parts: list[str]) -> dict[str, Any]:
        """Load ``checkpoint`` in place, the matrices of ``parts`` masked at ``ratio``. Returns a MaskReport's fields."""
        result: list[MaskReport] = []
        stream = masked(tensors(Path(checkpoint)), ratio, frozenset(parts), result)  # type: ignore[arg-type]
        self.model_runner.reload_weights(weights_iterator=stream)
        for _ in stream:  # what the loader did not ask for still counts in the report
            pass
        return dataclasses.asdict(result[0])
