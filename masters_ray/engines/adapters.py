"""Low-rank adapters (peft) on the student: put on, written alone, merged into the weights."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from masters_ray.config import Lora
from masters_ray.parts import part_of

_ADAPTER = "lora_"


def add(model: Any, lora: Lora) -> Any:
    """Adapters on every linear layer of the language model; they alone are trained. Returns peft's model around
    ``model``, which is changed in place."""
    from peft import LoraConfig, get_peft_model

    targets = [name for name, module in model.named_modules() if _is_target(name, module)]
    return get_peft_model(
        model, LoraConfig(r=lora.rank, lora_alpha=lora.alpha, lora_dropout=0.0, target_modules=targets)
    )


def export(state: Mapping[str, Tensor], checkpoint: Path, target: Path, lora: Lora) -> dict[str, Tensor]:
    """Write the adapters as peft's own directory. Returns ``merged``. The directory appears whole or not at all."""
    wrapped = _wrapped(state, checkpoint, lora)
    building = target.with_name(target.name + ".building")
    shutil.rmtree(building, ignore_errors=True)
    wrapped.peft_config["default"].base_model_name_or_path = str(checkpoint)
    wrapped.save_pretrained(building)
    shutil.rmtree(target, ignore_errors=True)
    building.rename(target)
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
    if unexpected or any(_ADAPTER in name for name in missing):
        raise ValueError(f"the trained state does not fit the adapted model: {unexpected}, {missing}")
    return wrapped


def _merged(wrapped: Any) -> dict[str, Tensor]:
    whole: nn.Module = wrapped.merge_and_unload()
    return dict(whole.named_parameters())


def _is_target(name: str, module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) and part_of(f"{name}.weight") == "language"
