"""Facts of model families: the part of a model that a tensor belongs to, by its name in the checkpoint, and names in
configurations and inputs. Covers Qwen2.5-VL, Qwen3-VL, InternVL3 and InternVL3.5, in their own and in transformers'
naming, and mixtures of experts, also those that hold all experts in one tensor."""

import re
from collections.abc import Sequence
from typing import get_args

from masters_ray.config import MaskScope, Part

_PARTS: dict[Part, re.Pattern[str]] = {
    "projector": re.compile(r"merger|projector|(^|\.)(mlp1|connector|aligner)\."),
    "vision": re.compile(r"(^|\.)(visual|vision_tower|vision_model)\."),
    "lm_head": re.compile(r"(^|\.)lm_head\."),
    "embeddings": re.compile(r"(^|\.)embed_tokens\."),
    # Layers of audio towers and of multi-token prediction heads (mtp) have other prefixes.
    "language": re.compile(r"^((model|language_model|text_model)\.)*layers\."),
}
"""Part → pattern of its tensors' names; the first match counts."""
_WEIGHT = re.compile(r"\.weight$|(^|\.)experts\.(?![^.]*bias)[^.]*$")
_NO_MATRIX = re.compile("norm|pos_embed|position_embedding")
_NOT_LOADED = re.compile(r"(^|\.)mtp\.")
"""Multi-token prediction heads: the engines do not load them, and they belong to no part."""

PLACEHOLDER_IDS = re.compile(r"(image|video|audio)_token_(id|index)")
"""Keys of config.json that name the placeholder tokens of pictures, videos or sounds."""
LOGIT_CHANGES = ("final_logit_softcapping", "logit_scale", "logits_scaling")
"""Keys of config.json for an operation on the head's logits; None and 1 mean no operation."""
NOT_VISION = ("input_ids", "attention_mask", "mm_token_type_ids")
"""Outputs of a processor that the vision tower does not take."""


def part_of(name: str) -> Part | None:
    """Returns the part of a weight matrix; None for what is never masked: norms, biases, position tables."""
    return part_of_parameter(name) if _WEIGHT.search(name) and not _NO_MATRIX.search(name) else None


def part_of_parameter(name: str) -> Part | None:
    """Returns the part of any parameter, norms and biases included."""
    return next((part for part, names in _PARTS.items() if names.search(name)), None)


def parts_in(scope: MaskScope) -> list[Part]:
    return [part for part in get_args(Part) if getattr(scope, part)]


def matrices_in(name: str, shape: Sequence[int]) -> int:
    """Returns how many weight matrices a tensor holds: 1 with two axes, one per expert if [experts, …], otherwise 0."""
    return shape[0] if len(shape) == 3 and "experts" in name.split(".") else int(len(shape) == 2)


def is_unknown(name: str, shape: Sequence[int]) -> bool:
    """Whether a tensor is a weight matrix of no known part."""
    known = part_of(name) is not None or _NO_MATRIX.search(name) or _NOT_LOADED.search(name)
    return not known and name.endswith(".weight") and len(shape) == 2


def without_numbers(name: str) -> str:
    """Replaces each number in a tensor's name by ``*``: ``layers.0.up.weight`` gives ``layers.*.up.weight``."""
    return re.sub(r"(?<=\.)\d+(?=\.)", "*", name)
