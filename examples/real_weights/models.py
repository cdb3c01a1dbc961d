"""Qwen2.5-VLs around SmolLM2's layers with a small vision tower of their own, and their processor."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLVideoProcessor,
)

from examples.real_weights.recipe import RealShape
from examples.toy import models
from examples.toy.models import greedy, picture_tokens, tower_settings, turn_tokens
from examples.toy.recipe import Shape
from examples.toy.tokenizer import token_id


def kept_layers(layers: int, of: int) -> list[int]:
    """Which of ``of`` layers a model of ``layers`` keeps: evenly spread, the first and the last among them."""
    if not 2 <= layers <= of:
        raise ValueError(f"expected 2 to {of} layers, found {layers}")
    return [round(at * (of - 1) / (layers - 1)) for at in range(layers)]


def mapped(state: dict[str, torch.Tensor], layers: list[int]) -> dict[str, torch.Tensor]:
    """A LlamaForCausalLM's ``state`` under Qwen2.5-VL's names: ``layers`` only, counted anew, with biases of zero."""
    places = {layer: at for at, layer in enumerate(layers)}
    found: dict[str, torch.Tensor] = {}
    for name, tensor in state.items():
        pieces = name.split(".")
        if pieces[0] == "model":
            pieces[0] = "model.language_model"
        if "layers" in pieces:
            at = pieces.index("layers") + 1
            if int(pieces[at]) not in places:
                continue
            pieces[at] = str(places[int(pieces[at])])
        found[".".join(pieces)] = tensor
        if pieces[-2] in ("q_proj", "k_proj", "v_proj") and pieces[-1] == "weight":
            found[".".join([*pieces[:-1], "bias"])] = torch.zeros(len(tensor))
    return found


def make_config(shape: RealShape, tokenizer: PreTrainedTokenizerFast, llama: Any) -> Qwen2_5_VLConfig:
    """The configuration of a model of this shape; ``llama``: the configuration of the model whose weights it takes."""
    text = {
        "vocab_size": llama.vocab_size,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "max_position_embeddings": llama.max_position_embeddings,
        "rms_norm_eps": llama.rms_norm_eps,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": llama.rope_parameters["rope_theta"],
            "mrope_section": list(shape.sections),
        },
        "bos_token_id": token_id(tokenizer, "<|im_start|>"),
        **turn_tokens(tokenizer),
        "tie_word_embeddings": True,
    }
    vision = tower_settings(shape) | {
        "window_size": shape.window,
        "fullatt_block_indexes": list(range(shape.vision_depth)),
    }
    return Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        **picture_tokens(tokenizer),
        tie_word_embeddings=True,
    )


def make_model(
    shape: RealShape, tokenizer: PreTrainedTokenizerFast, seed: int, llama: Any
) -> Qwen2_5_VLForConditionalGeneration:
    """A float32 model with a fresh tower, which depends on ``seed`` alone, and the language weights of ``llama``."""
    config = make_config(shape, tokenizer, llama.config)
    torch.manual_seed(seed)
    model = Qwen2_5_VLForConditionalGeneration(config)
    state = mapped(llama.state_dict(), kept_layers(shape.layers, llama.config.num_hidden_layers))
    missing, unexpected = model.load_state_dict(state, strict=False)
    with torch.no_grad():
        for block in model.model.visual.blocks:
            block.attn.qkv.bias[: 2 * shape.vision_hidden].normal_(std=shape.bias)
    left = [name for name in missing if not name.startswith("model.visual.")]
    if left or unexpected:
        raise ValueError(f"weights that do not fit: missing {left}, unexpected {unexpected}")
    model.generation_config = greedy(tokenizer)
    return model


def make_processor(shape: Shape, tokenizer: PreTrainedTokenizerFast) -> Any:
    """The toy's processor, of Qwen2.5-VL's classes."""
    return models.make_processor(shape, tokenizer, Qwen2_5_VLProcessor, Qwen2VLVideoProcessor)
