"""Memory and speed of GPUs, from their vendor's data sheets; dense bfloat16 operations."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Card:
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
