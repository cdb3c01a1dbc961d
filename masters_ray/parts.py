"""Facts of model families: which part of a vision-language model a tensor belongs to, by its name in the checkpoint,
and what their configurations and inputs call things.

Covers Qwen2.5-VL, Qwen3-VL, InternVL3 and InternVL3.5, in their own and in transformers' naming, with the experts of
mixture models, which some of them hold in one tensor for all.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import get_args

from masters_ray.config import MaskScope, Part

_PARTS: dict[Part, re.Pattern[str]] = {
    "projector": re.compile(r"merger|projector|(^|\.)(mlp1|connector|aligner)\."),
    "vision": re.compile(r"(^|\.)(visual|vision_tower|vision_model)\."),
    "lm_head": re.compile(r"(^|\.)lm_head\."),
    "embeddings": re.compile(r"(^|\.)embed_tokens\."),
    # Layers of audio towers and of heads that predict several tokens (mtp) have other names before them.
    "language": re.compile(r"^((model|language_model|text_model)\.)*layers\."),
}
"""The first that matches counts."""
_WEIGHT = re.compile(r"\.weight$|(^|\.)experts\.(?![^.]*bias)[^.]*$")
_NO_MATRIX = re.compile("norm|pos_embed|position_embedding")
_NOT_LOADED = re.compile(r"(^|\.)mtp\.")
"""Heads that the engines leave out: they are in no part, and nobody misses them."""

PLACEHOLDER_IDS = re.compile(r"(image|video|audio)_token_(id|index)")
"""Keys of config.json that name tokens which stand for pictures, videos or sounds."""
LOGIT_CHANGES = ("final_logit_softcapping", "logit_scale", "logits_scaling")
"""What configurations call an operation on logits behind the head; None and 1 do nothing."""
NOT_VISION = ("input_ids", "attention_mask", "mm_token_type_ids")
"""Outputs of a processor that are no input of the vision tower."""


def part_of(name: str) -> Part | None:
    """Which part a checkpoint's weight matrix belongs to; None: never masked (norms, biases, position tables, and
    matrices of no part)."""
    return part_of_parameter(name) if _WEIGHT.search(name) and not _NO_MATRIX.search(name) else None


def part_of_parameter(name: str) -> Part | None:
    """The part in which a parameter of any kind stands, norms and biases too."""
    return next((part for part, names in _PARTS.items() if names.search(name)), None)


def parts_in(scope: MaskScope) -> list[Part]:
    """The parts that are masked."""
    return [part for part in get_args(Part) if getattr(scope, part)]


def matrices_in(name: str, shape: Sequence[int]) -> int:
    """How many weight matrices a tensor is: one if it has two axes, one for each expert if it is [experts, …]."""
    if len(shape) == 3 and "experts" in name.split("."):
        return shape[0]
    return int(len(shape) == 2)


def is_unknown(name: str, shape: Sequence[int]) -> bool:
    """Whether a tensor is a weight matrix of which it is not known what part it belongs to."""
    known = part_of(name) is not None or _NO_MATRIX.search(name) or _NOT_LOADED.search(name)
    return not known and name.endswith(".weight") and len(shape) == 2


def without_numbers(name: str) -> str:
    """Example: ``layers.0.up.weight`` gives ``layers.*.up.weight``."""
    return re.sub(r"(?<=\.)\d+(?=\.)", "*", name)
