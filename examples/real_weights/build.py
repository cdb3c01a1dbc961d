"""Build the pair: ``python -m examples.real_weights.build``. The same command goes on where a killed one stopped.

SmolLM2-135M + easy-vqa ─► tower ─► judge ─► language and projector ─► bfloat16 files ─► figures ─► manifest.json
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from examples.real_weights import models, pretrained
from examples.real_weights.recipe import RECIPES
from examples.real_weights.tokenizer import make_tokenizer
from examples.real_weights.train import RealTrainer
from examples.toy import build, manifest
from examples.toy.models import load
from examples.toy.recipe import Recipe
from masters_ray.families import Architecture
from masters_ray.method.masks import mask_smallest

HOME = Path("runs/real_weights")
COMPARED = 0.2
"""The mask ratio at which the trained weights' mask is compared with that of pretraining's."""


def compared(recipe: Recipe, folder: Path) -> dict[str, Any]:
    """How far the saved language matrices are from the pretrained ones, for the manifest."""
    llama = pretrained.load_model()
    layers = models.kept_layers(recipe.shape.layers, llama.config.num_hidden_layers)
    origin = models.mapped(llama.state_dict(), layers)
    pairs = ((tensor.float(), origin[name]) for name, tensor in _language(load(folder).state_dict().items()))
    return {"from_pretraining": {"layers": layers, **difference(pairs)}}


def difference(pairs: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> dict[str, float]:
    """Of (trained, pretrained) matrices: the relative change, and the share of masked entries that both masks drop."""
    moved = size = both = dropped = 0.0
    for trained, origin in pairs:
        moved += (trained - origin).square().sum().item()
        size += origin.square().sum().item()
        now, then = mask_smallest(trained, COMPARED) == 0, mask_smallest(origin, COMPARED) == 0
        both += (now & then).sum().item()
        dropped += then.sum().item()
    return {"relative_change": round((moved / size) ** 0.5, 4), f"same_mask_at_{COMPARED}": round(both / dropped, 4)}


def _language(named: Iterable[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
    part_of = Architecture({"model_type": "qwen2_5_vl"}).part_of
    return ((name, tensor) for name, tensor in named if part_of(name) == "language" and tensor.ndim == 2)


PAIR = build.Pair(
    about="SmolLM2-135M's layers inside Qwen2.5-VL over easy-vqa; accuracy is greedy, on test pictures, by kind",
    recipes=RECIPES,
    tokenizer=make_tokenizer,
    processor=models.make_processor,
    trainer=RealTrainer,
    packages=(*manifest.PACKAGES, pretrained.PACKAGE, pretrained.READER),
    asked=240,
    judged=0,
    told=compared,
)

if __name__ == "__main__":
    sys.exit(build.main(PAIR, __doc__, out=HOME / "pair", work=HOME / "build"))
