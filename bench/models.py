"""Qwen3-VL models of chosen sizes with random weights, float32, their vision towers frozen."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from bench.scale import at
from masters_ray.models import hf

END, IMAGE, VIDEO, PICTURE_STARTS, PICTURE_ENDS = 1, 2, 3, 4, 5
FIRST_WORD = 6
"""Ids from here on stand for text."""
PATCH = 16
"""Pixels on a side of a patch; four patches are merged into one token."""
LOGITS_BYTES = 64 * 2**20
"""``learner.logits_mib`` of the default configuration."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """The language model's."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    key_heads: int
    vocabulary: int = 4096
    head_width: int = 64
    vision: int = 128
    """Width of the vision tower's matrices."""


TINY = Size(hidden=64, intermediate=128, layers=2, heads=2, key_heads=1, vocabulary=512)
STUDENT = at(Size(hidden=512, intermediate=1536, layers=6, heads=8, key_heads=4), TINY)
"""22 million parameters."""
TEACHER = at(Size(hidden=1024, intermediate=3584, layers=6, heads=16, key_heads=8), TINY)
"""Four times the student's parameters."""
NARROW = replace(STUDENT, vision=512)
WIDE = at(Size(hidden=1024, intermediate=3072, layers=6, heads=16, key_heads=8, vision=512), TINY)
WIDEST = at(Size(hidden=2048, intermediate=6144, layers=3, heads=32, key_heads=16, vision=512), TINY)
"""No matrix of these three is narrower than 512."""
LARGE_VOCABULARY = at(Size(hidden=256, intermediate=768, layers=4, heads=4, key_heads=2, vocabulary=151_936), TINY)
"""Whose logits would weigh more than everything else."""


def build(size: Size, seed: int = 0) -> Any:
    """A model in training mode whose weights depend on ``seed`` alone; embeddings and output head are one matrix."""
    from transformers import GenerationConfig, Qwen3VLConfig, Qwen3VLForConditionalGeneration

    half = size.head_width // 2
    sections = [half - 2 * (half * 5 // 16), half * 5 // 16, half * 5 // 16]
    config = Qwen3VLConfig(
        text_config={
            "vocab_size": size.vocabulary,
            "hidden_size": size.hidden,
            "intermediate_size": size.intermediate,
            "num_hidden_layers": size.layers,
            "num_attention_heads": size.heads,
            "num_key_value_heads": size.key_heads,
            "head_dim": size.head_width,
            "max_position_embeddings": 8192,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e6,
                "mrope_section": sections,
                "mrope_interleaved": True,
            },
            "pad_token_id": 0,
            "eos_token_id": END,
            "tie_word_embeddings": True,
        },
        vision_config={
            "depth": 2,
            "hidden_size": size.vision,
            "intermediate_size": 2 * size.vision,
            "num_heads": size.vision // 32,
            "patch_size": PATCH,
            "out_hidden_size": size.hidden,
            "num_position_embeddings": 48**2,
            "deepstack_visual_indexes": [0],
        },
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=PICTURE_STARTS,
        vision_end_token_id=PICTURE_ENDS,
        tie_word_embeddings=True,
    )
    torch.manual_seed(seed)
    model = Qwen3VLForConditionalGeneration(config).float()
    model.generation_config = GenerationConfig(eos_token_id=END, pad_token_id=0)
    hf.freeze(model, ["vision"])
    return model.train()


def parameters(model: torch.nn.Module) -> tuple[int, int]:
    """(all, trained), a tied matrix once."""
    sizes = [(one.numel(), one.requires_grad) for one in model.parameters()]
    return sum(size for size, _ in sizes), sum(size for size, trained in sizes if trained)
