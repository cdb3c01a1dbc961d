"""Memory of a learner worker and of an engine, computed from shapes (ZeRO's arithmetic)."""

import math
from dataclasses import dataclass
from pathlib import Path

from masters_ray.config import Engine, Learner
from masters_ray.families import Architecture
from masters_ray.models import weights

_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}
_KEPT = 17
"""Numbers of the width of the model that a layer keeps per token for its backward pass, beside the wide ones of its
MLP: inputs of norms and projections, q, k, v, attention's output, residuals."""


@dataclass(frozen=True, kw_only=True)
class WorkerBytes:
    """What one learner worker holds at its peak, in bytes."""

    weights: float
    gradients: float
    optimizer: float
    activations: float
    logits: float
    host: float
    """In the node's memory: what is offloaded."""

    @property
    def device(self) -> float:
        """On the GPU; on a CPU there is nothing else."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.logits


def learner_bytes(learner: Learner, checkpoint: Path) -> WorkerBytes:
    """Returns a worker's peak. Sharded by ZeRO: the optimizer's state from stage 1, gradients from 2, weights at 3."""
    architecture = weights.architecture(checkpoint)
    sizes = {name: math.prod(entry.shape) for name, entry in weights.headers(checkpoint).items()}
    total = sum(sizes.values())
    trained = sum(size for name, size in sizes.items() if architecture.part_of(name) not in learner.frozen)
    if learner.lora.rank:
        trained = _adapters(architecture, checkpoint, learner.lora.rank)
    bytes_each, stage, workers = _BYTES[learner.dtype], learner.zero_stage, learner.workers
    held = total * bytes_each / (workers if stage == 3 else 1)
    gradients = trained * 4 / (workers if stage >= 2 else 1)
    optimizer = trained * (8 if learner.dtype == "float32" else 12) / (workers if stage else 1)
    host = (optimizer + gradients if learner.offload != "nothing" else 0) + (
        held if learner.offload == "everything" else 0
    )
    return WorkerBytes(
        weights=0 if learner.offload == "everything" else held,
        gradients=0 if learner.offload != "nothing" else gradients,
        optimizer=0 if learner.offload != "nothing" else optimizer,
        activations=_activations(architecture, learner, bytes_each),
        logits=3 * learner.logits_mib * 2**20,
        host=host,
    )


def _adapters(architecture: Architecture, checkpoint: Path, rank: int) -> int:
    found = 0
    for name, entry in weights.headers(checkpoint).items():
        if architecture.part_of(name) == "language" and len(entry.shape) == 2:
            found += rank * sum(entry.shape)
    return found


def _activations(architecture: Architecture, learner: Learner, bytes_each: int) -> float:
    text = architecture.text
    layers, width, wide = (int(text[key]) for key in ("num_hidden_layers", "hidden_size", "intermediate_size"))
    of_layer = _KEPT * width + 4 * wide
    kept = layers * width + of_layer if learner.activation_checkpointing else layers * of_layer
    return float(learner.tokens_per_micro_batch * kept * bytes_each)


def engine_bytes(engine: Engine, checkpoint: Path, tensor_parallel: int) -> float:
    """Returns the bytes of weights of one rank; the KV cache takes what its engine is given."""
    return weights.parameter_count(checkpoint) * _BYTES[engine.dtype] / tensor_parallel
