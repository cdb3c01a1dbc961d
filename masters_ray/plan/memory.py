"""Cards, and the memory of a learner worker and of an engine, computed from shapes (ZeRO's arithmetic)."""

import math
from dataclasses import dataclass
from pathlib import Path

from masters_ray.config import Engine, Learner
from masters_ray.families import Architecture
from masters_ray.learner.engine import BUCKET, LIVE
from masters_ray.models import weights

BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}
_ENGINE, _STEP = 1.5e9, 3e5
"""Bytes that an engine takes beside weights and KV cache: context and CUDA graphs; per token of its largest step."""


@dataclass(frozen=True, kw_only=True)
class Card:
    """A GPU as its vendor's data sheet has it; dense bfloat16 operations."""

    memory: float  # bytes
    operations: float  # floating-point operations per second of bfloat16 products
    bandwidth: float  # bytes per second of its memory


CARDS = {
    "a100-80gb": Card(memory=80e9, operations=312e12, bandwidth=2.04e12),
    "h100-80gb": Card(memory=80e9, operations=989e12, bandwidth=3.35e12),
    "h200": Card(memory=141e9, operations=989e12, bandwidth=4.8e12),
    "l40s": Card(memory=48e9, operations=362e12, bandwidth=0.864e12),
    "rtx4090": Card(memory=24e9, operations=165e12, bandwidth=1.008e12),
    "a10g": Card(memory=24e9, operations=125e12, bandwidth=0.6e12),
    "l4": Card(memory=24e9, operations=121e12, bandwidth=0.3e12),
}
"""``cluster.gpu`` → card. The H200's numbers are those of 141 GB of HBM3e."""


@dataclass(frozen=True, kw_only=True)
class WorkerBytes:
    """What one learner worker holds at its peak, in bytes."""

    weights: float
    gradients: float
    optimizer: float
    activations: float
    logits: float
    buffers: float  # what DeepSpeed exchanges gradients through
    host: float  # in the node's memory: what is offloaded

    @property
    def device(self) -> float:
        """On the GPU; on a CPU there is nothing else."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.logits + self.buffers


@dataclass(frozen=True, kw_only=True)
class EngineBytes:
    """What one rank of an engine holds, in bytes."""

    weights: float
    cache: float  # what is left for the KV cache; below 0 the engine does not start
    token: float  # of the KV cache, per token of a sequence
    room: float  # all that the engine may take

    def sequences(self, tokens: int) -> float:
        """Returns how many sequences of so many tokens the cache holds."""
        return max(0.0, self.cache) / (tokens * self.token)


def learner_bytes(learner: Learner, checkpoint: Path) -> WorkerBytes:
    """Returns a worker's peak. Sharded by ZeRO: the optimizer's state from stage 1, gradients from 2, weights at 3."""
    architecture = weights.architecture(checkpoint)
    shapes = {name: entry.shape for name, entry in weights.headers(checkpoint).items()}
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    total = sum(sizes.values())
    trained = sum(size for name, size in sizes.items() if architecture.part_of(name) not in learner.frozen)
    if learner.lora.rank:
        matrices = [one for name, one in shapes.items() if architecture.part_of(name) == "language" and len(one) == 2]
        trained = learner.lora.rank * sum(map(sum, matrices))
    bytes_each, stage, workers = BYTES[learner.dtype], learner.zero_stage, learner.workers
    held = total * bytes_each / (workers if stage == 3 else 1)
    gradients = trained * 4 / (workers if stage >= 2 else 1)
    optimizer = trained * (8 if learner.dtype == "float32" else 12) / (workers if stage else 1)
    host = (optimizer + gradients if learner.offload != "nothing" else 0) + (
        held if learner.offload == "everything" else 0
    )
    gathered = min(total, LIVE) * bytes_each * (1 - 1 / workers) if stage == 3 else 0.0
    return WorkerBytes(
        weights=gathered if learner.offload == "everything" else held + gathered,
        gradients=0 if learner.offload != "nothing" else gradients,
        optimizer=0 if learner.offload != "nothing" else optimizer,
        activations=_activations(architecture, learner, bytes_each),
        logits=_logits(architecture, learner),
        buffers=BUCKET * bytes_each if stage else 0.0,
        host=host,
    )


def _activations(architecture: Architecture, learner: Learner, bytes_each: int) -> float:
    text = architecture.text
    layers, width, wide = (int(text[key]) for key in ("num_hidden_layers", "hidden_size", "intermediate_size"))
    queries, keys = _widths(architecture)
    # Inputs and outputs of two norms; queries and keys before and after their norm, values, attention's output; gate,
    # up, activation and product of the MLP.
    of_layer = 4 * width + 3 * queries + 3 * keys + 4 * wide
    kept = layers * width + of_layer if learner.activation_checkpointing else layers * of_layer
    return float(learner.tokens_per_micro_batch * kept * bytes_each)


def _logits(architecture: Architecture, learner: Learner) -> float:
    """Of what the head holds at a time (``kernels.head``): a float32 tile, and the gradient of its weight."""
    vocabulary, width = int(architecture.text["vocab_size"]), int(architecture.text["hidden_size"])
    tile = min(learner.logits_mib * 2**20, learner.tokens_per_micro_batch * vocabulary * 4)
    return tile + vocabulary * width * float(BYTES[learner.dtype]) * (not learner.lora.rank)


def _widths(architecture: Architecture) -> tuple[int, int]:
    """Returns the numbers per token of all queries, and of all keys or values."""
    text = architecture.text
    heads = int(text["num_attention_heads"])
    width = int(text.get("head_dim") or int(text["hidden_size"]) // heads)
    return heads * width, int(text.get("num_key_value_heads") or heads) * width


def token_bytes(checkpoint: Path, dtype: str) -> float:
    """Returns the bytes of a token's keys and values in all layers."""
    architecture = weights.architecture(checkpoint)
    return 2.0 * int(architecture.text["num_hidden_layers"]) * _widths(architecture)[1] * BYTES[dtype]


def engine_bytes(engine: Engine, checkpoint: Path, tensor_parallel: int, room: float) -> EngineBytes:
    """Returns what a rank holds. room: bytes of its device's memory that its process reserves."""
    held = weights.parameter_count(checkpoint) * BYTES[engine.dtype] / tensor_parallel
    allowed = room * (engine.gpu_memory_utilization or 0.9)
    cache = engine.kv_cache_memory_bytes or allowed - held - _ENGINE - _STEP * engine.max_num_batched_tokens
    token = token_bytes(checkpoint, engine.dtype) / tensor_parallel
    return EngineBytes(weights=held, cache=cache, token=token, room=allowed)
