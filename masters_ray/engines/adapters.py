"""Low-rank adapters (peft) on the student: put on, written alone, merged into the weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from masters_ray.config import Lora
from masters_ray.files import whole_folder
from masters_ray.parts import part_of


def add(model: Any, lora: Lora) -> Any:
    """Adapters on every linear layer of the language model; they alone are trained. Returns peft's model around
    ``model``, which is changed in place."""
    from peft import LoraConfig, get_peft_model

    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    targets = [name for name in linear if part_of(f"{name}.weight") == "language"]
    return get_peft_model(
        model, LoraConfig(r=lora.rank, lora_alpha=lora.alpha, lora_dropout=0.0, target_modules=targets)
    )


def export(state: Mapping[str, Tensor], checkpoint: Path, target: Path, lora: Lora) -> dict[str, Tensor]:
    """Write the adapters as peft's own directory. Returns ``merged``. The directory appears whole or not at all."""
    wrapped = _wrapped(state, checkpoint, lora)
    wrapped.peft_config["default"].base_model_name_or_path = str(checkpoint)
    with whole_folder(target) as building:
        wrapped.save_pretrained(building)
    return _merged(wrapped)


def merged(state: Mapping[str, Tensor], checkpoint: Path, lora: Lora) -> dict[str, Tensor]:
    """The whole student with the adapters merged in: parameter names of the transformers model → float32 tensors.

    state: parameter names of the adapted model → tensors on the CPU.
    """
    return _merged(_wrapped(state, checkpoint, lora))


def _wrapped(state: Mapping[str, Tensor], checkpoint: Path, lora: Lora) -> Any:
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.float32)
    wrapped = add(model, lora)
    missing, unexpected = model.load_state_dict(dict(state), strict=False)
    if unexpected or any("lora_" in name for name in missing):
        raise ValueError(f"the trained state does not fit the adapted model: {unexpected}, {missing}")
    return wrapped


def _merged(wrapped: Any) -> dict[str, Tensor]:
    return dict(wrapped.merge_and_unload().named_parameters())
