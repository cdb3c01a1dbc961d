"""Which part of a vision-language model a checkpoint's tensor belongs to, by its name and shape."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

from masters_ray.config import Part

_BEFORE_LAYERS = frozenset({"model", "language_model", "text_model"})
"""What stands before ``layers`` in the names of a language model; those of audio towers and of heads that predict
several tokens (mtp) have something else there."""
_PROJECTORS = ("mlp1", "connector", "aligner")
_TOWERS = ("visual", "vision_tower", "vision_model")
_NOT_A_PART = ("norm", "pos_embed", "position_embedding")
_NOT_LOADED = ("mtp",)
"""Heads that the engines leave out: they are in no part, and nobody misses them."""


def part_of(name: str) -> Part | None:
    """Which part of a vision-language model a checkpoint's weight matrix belongs to; None: never masked.

    Norms, biases and position tables are in no part. Covers the checkpoints of Qwen2.5-VL, Qwen3-VL, InternVL3 and
    InternVL3.5, in their own and in transformers' naming, with the experts of mixture models, which some of them hold
    in one tensor for all.
    """
    pieces = name.split(".")
    if not (name.endswith(".weight") or pieces[-2:-1] == ["experts"]):
        return None
    if any(word in name for word in _NOT_A_PART) or "bias" in pieces[-1]:
        return None
    if any("merger" in piece or "projector" in piece or piece in _PROJECTORS for piece in pieces):
        return "projector"
    if any(piece in _TOWERS for piece in pieces):
        return "vision"
    if "lm_head" in pieces:
        return "lm_head"
    if "embed_tokens" in pieces:
        return "embeddings"
    if "layers" not in pieces or not _BEFORE_LAYERS.issuperset(pieces[: pieces.index("layers")]):
        return None
    return "language"


def matrices_in(name: str, shape: Sequence[int]) -> int:
    """How many weight matrices a tensor is: one if it has two axes, one for each expert if it is [experts, …]."""
    if len(shape) == 3 and "experts" in name.split("."):
        return shape[0]
    return int(len(shape) == 2)


def is_unknown(name: str, shape: Sequence[int]) -> bool:
    """Whether a tensor is a weight matrix of which it is not known what part it belongs to."""
    known = part_of(name) is not None or any(word in name for word in _NOT_A_PART)
    return not known and name.endswith(".weight") and len(shape) == 2 and not set(_NOT_LOADED) & set(name.split("."))


def counted(names: Iterable[tuple[str, int]]) -> dict[str, int]:
    """Counts of names that differ only in their numbers.

    Example: ``layers.0.up.weight`` and ``layers.1.up.weight``, 1 each, are ``{"layers.*.up.weight": 2}``.
    """
    found: Counter[str] = Counter()
    for name, count in names:
        found[re.sub(r"(?<=\.)\d+(?=\.)", "*", name)] += count
    return dict(sorted(found.items()))
