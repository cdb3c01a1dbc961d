"""Tiny Qwen3-VL models with their processor, saved so that transformers and vLLM both load them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForImageTextToText,
    GenerationConfig,
    PreTrainedTokenizerFast,
    ProcessorMixin,
    Qwen2VLImageProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from examples.toy import tokenizer as words
from examples.toy.forward import Model
from examples.toy.recipe import Shape

MEAN = STD = [0.5, 0.5, 0.5]
MIN_PIXELS = 64 * 64
MAX_PIXELS = 128 * 128
"""Pictures outside these areas (in pixels) are resized by the processor; 64 x 64 ones stay as they are."""
ROPE_THETA = 10_000.0


def turn_tokens(tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
    """The numbers of the tokens that end a turn and fill a batch, by their keys in a configuration."""
    return {
        "eos_token_id": words.token_id(tokenizer, words.END),
        "pad_token_id": words.token_id(tokenizer, words.PAD),
    }


def picture_tokens(tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
    """The numbers of the tokens that stand for pictures, by their keys in a Qwen-VL's configuration."""
    return {
        "image_token_id": words.token_id(tokenizer, words.IMAGE),
        "video_token_id": words.token_id(tokenizer, words.VIDEO),
        "vision_start_token_id": words.token_id(tokenizer, words.VISION_START),
        "vision_end_token_id": words.token_id(tokenizer, words.VISION_END),
    }


def tower_settings(shape: Shape) -> dict[str, Any]:
    """What the configurations of all Qwen-VLs' vision towers have in common."""
    return {
        "depth": shape.vision_depth,
        "hidden_size": shape.vision_hidden,
        "intermediate_size": shape.vision_intermediate,
        "num_heads": shape.vision_heads,
        "patch_size": shape.patch,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "out_hidden_size": shape.hidden,
    }


def greedy(tokenizer: PreTrainedTokenizerFast) -> GenerationConfig:
    """How a model of a pair answers by itself."""
    return GenerationConfig(**turn_tokens(tokenizer), do_sample=False, max_new_tokens=64)


def make_config(shape: Shape, tokenizer: PreTrainedTokenizerFast) -> Qwen3VLConfig:
    """The configuration of a model of this shape over this tokenizer."""
    half = shape.head_dim // 2
    sections = [half - 2 * (half * 5 // 16), half * 5 // 16, half * 5 // 16]
    text = {
        "vocab_size": words.VOCABULARY,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "max_position_embeddings": words.MAX_LENGTH,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": ROPE_THETA,
            "mrope_section": sections,
            "mrope_interleaved": True,
        },
        **turn_tokens(tokenizer),
        "tie_word_embeddings": True,
    }
    vision = tower_settings(shape) | {
        "num_position_embeddings": shape.grid**2,
        "deepstack_visual_indexes": list(shape.deepstack),
    }
    return Qwen3VLConfig(
        text_config=text,
        vision_config=vision,
        **picture_tokens(tokenizer),
        tie_word_embeddings=True,
    )


def make_model(shape: Shape, tokenizer: PreTrainedTokenizerFast, seed: int) -> Qwen3VLForConditionalGeneration:
    """A fresh float32 model whose weights depend on ``seed`` alone."""
    torch.manual_seed(seed)
    model = Qwen3VLForConditionalGeneration(make_config(shape, tokenizer))
    model.generation_config = greedy(tokenizer)
    return model


def make_processor(
    shape: Shape, tokenizer: PreTrainedTokenizerFast, kind: Any = Qwen3VLProcessor, videos: Any = Qwen3VLVideoProcessor
) -> Any:
    """The processor that goes with the model: patches, normalisation and the chat template. kind, videos: its class and
    that of its part for videos."""
    common = {"patch_size": shape.patch, "merge_size": 2, "temporal_patch_size": 2}
    bounds = {"shortest_edge": MIN_PIXELS, "longest_edge": MAX_PIXELS}
    return kind(
        image_processor=Qwen2VLImageProcessor(size=bounds, image_mean=MEAN, image_std=STD, **common),
        video_processor=videos(size=bounds, image_mean=MEAN, image_std=STD, **common),
        tokenizer=tokenizer,
        chat_template=words.CHAT_TEMPLATE,
    )


def parameters(model: torch.nn.Module) -> int:
    """Number of distinct parameters (a tied matrix counts once)."""
    return sum(parameter.numel() for parameter in model.parameters())


def save(model: Model, processor: ProcessorMixin, folder: Path) -> None:
    """Write bfloat16 weights, configuration, tokenizer and processor to ``folder``, replacing it as a whole.

    The model itself stays float32. What was there before is gone only after the new files are complete.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = folder.with_name(f".{folder.name}.new")
    stale = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(fresh, ignore_errors=True)
    shutil.rmtree(stale, ignore_errors=True)
    small = type(model)(model.config)
    small.to(dtype=torch.bfloat16)
    small.load_state_dict(model.state_dict())
    small.generation_config = model.generation_config
    small.save_pretrained(fresh)
    processor.save_pretrained(fresh)
    if folder.exists():
        folder.rename(stale)
    fresh.rename(folder)
    shutil.rmtree(stale, ignore_errors=True)


def load(folder: Path) -> Model:
    """A saved model in float32, ready to answer. Raises OSError when the folder does not hold one."""
    model: Model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    model.eval()
    return model
