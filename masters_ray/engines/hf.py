"""The student as a transformers model: prompts to tensors, answer tokens to log-probabilities, export."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from masters_ray.engines.chat import Chat
from masters_ray.errors import CheckpointError
from masters_ray.masks import part_of
from masters_ray.packing import PackedBatch, PromptTensors
from masters_ray.prompts import Message

_NOT_FOR_THE_MODEL = ("input_ids", "attention_mask", "mm_token_type_ids")


def load_model(folder: Path, dtype: str) -> Any:
    """The model with weights of ``dtype`` ("float32", "bfloat16"). Raises CheckpointError when it cannot be loaded."""
    from transformers import AutoModelForImageTextToText

    try:
        return AutoModelForImageTextToText.from_pretrained(
            folder, dtype=getattr(torch, dtype), attn_implementation="sdpa"
        )
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{folder}: the model cannot be loaded: {error}") from error


class AnswerLogprobs(nn.Module):
    """A vision-language model whose forward gives log-probabilities at the answer tokens alone."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: PackedBatch) -> Tensor:
        """float32 [answer tokens, vocabulary], normalised: only the answers' tokens go through the head."""
        positions = batch.positions if batch.positions.shape[0] > 1 else batch.positions[0]
        hidden = self.model.model(
            input_ids=batch.input_ids,
            attention_mask=batch.mask,
            position_ids=positions,
            use_cache=False,
            **batch.vision,
        ).last_hidden_state
        logits = self.model.lm_head(hidden.flatten(0, 1)[batch.predict_at])
        return logits.float().log_softmax(-1)


def prompt_tensors(
    model: Any, chat: Chat, messages: Sequence[Message], pictures: Sequence[Image.Image]
) -> PromptTensors:
    """A prompt as ``model`` reads it, with the rotary positions that the model itself would give it."""
    inputs = chat.inputs(messages, pictures)
    input_ids = inputs["input_ids"]
    if hasattr(model.model, "get_rope_index"):
        positions, _ = model.model.get_rope_index(**{key: value for key, value in inputs.items() if "pixel" not in key})
        positions = positions[:, 0]
    else:
        positions = torch.arange(input_ids.shape[1]).unsqueeze(0)
    vision = {key: value for key, value in inputs.items() if key not in _NOT_FOR_THE_MODEL}
    return PromptTensors(input_ids=input_ids[0], positions=positions, vision=vision)


def freeze_vision(model: Any) -> None:
    """No gradients for the vision tower; the projector stays trainable."""
    for name, parameter in model.named_parameters():
        if part_of_parameter(name) == "vision":
            parameter.requires_grad_(False)


def part_of_parameter(name: str) -> str | None:
    """Like ``masks.part_of``, for every parameter: biases and norms belong to the part that they stand in."""
    stem = name.rpartition(".")[0].replace("norm", "").replace("pos_embed", "").replace("position_embedding", "")
    return part_of(f"{stem}.weight")


def export(state: Mapping[str, Tensor], checkpoint: Path, target: Path, dtype: str) -> None:
    """Write trained weights as an ordinary Hugging Face directory: weights, configuration, processor.

    state: parameter names of the transformers model → tensors on the CPU. Everything but the weights is the
    checkpoint's. The directory appears whole or not at all.
    """
    from transformers import AutoConfig, AutoModelForImageTextToText

    building = target.with_name(target.name + ".building")
    shutil.rmtree(building, ignore_errors=True)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(checkpoint))
    wanted = {name: tensor.to(getattr(torch, dtype)).contiguous() for name, tensor in state.items()}
    model.save_pretrained(building, state_dict=wanted)
    for file in checkpoint.iterdir():
        if (
            file.is_file()
            and file.suffix in (".json", ".jinja", ".txt", ".model")
            and not (building / file.name).exists()
        ) and not file.name.endswith(".index.json"):
            shutil.copyfile(file, building / file.name)
    for file in building.iterdir():
        file.chmod(0o644)  # safetensors writes for its owner alone
    shutil.rmtree(target, ignore_errors=True)
    building.rename(target)
