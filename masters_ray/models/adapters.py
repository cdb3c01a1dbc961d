"""Low-rank adapters (LoRA, by peft) of the student: adds them, writes them alone, merges them into the weights."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from masters_ray.config import Lora
from masters_ray.models.hf import whole_folder
from masters_ray.parts import part_of


def add(model: Any, lora: Lora) -> Any:
    """Adds adapters to every linear layer of the language model, in place; all other weights are frozen. Returns peft's
    wrapper of ``model``."""
    from peft import LoraConfig, get_peft_model

    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    targets = [name for name in linear if part_of(f"{name}.weight") == "language"]
    return get_peft_model(
        model, LoraConfig(r=lora.rank, lora_alpha=lora.alpha, lora_dropout=0.0, target_modules=targets)
    )


def merged(
    state: Mapping[str, Tensor], checkpoint: Path, lora: Lora, write_to: Path | None = None
) -> dict[str, Tensor]:
    """Returns the student with merged adapters: parameter names of the transformers model → float32 tensors.

    state: parameter names of the adapted model → tensors on the CPU. write_to: directory for the adapters alone in
    peft's format, written atomically. Raises ValueError when ``state`` does not fit the adapted model.
    """
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.float32)
    wrapped = add(model, lora)
    missing, unexpected = model.load_state_dict(dict(state), strict=False)
    if unexpected or any("lora_" in name for name in missing):
        raise ValueError(f"the trained state does not fit the adapted model: {unexpected}, {missing}")
    if write_to is not None:
        wrapped.peft_config["default"].base_model_name_or_path = str(checkpoint)
        with whole_folder(write_to) as building:
            wrapped.save_pretrained(building)
    return dict(wrapped.merge_and_unload().named_parameters())
