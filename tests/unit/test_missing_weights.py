"""A checkpoint that lacks weights of its model, or has others beside: found in its headers."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from masters_ray.engines import hf
from masters_ray.errors import CheckpointError
from tests.conftest import PAIR

QUERIES = "model.language_model.layers.1.self_attn.q_proj.weight"


def rewritten(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> Path:
    shutil.copytree(PAIR / "student", folder)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("lacks", [QUERIES, "model.visual.blocks.0.attn.qkv.bias", "model.language_model.norm.weight"])
def test_weights_that_are_missing_are_named_before_and_while_they_are_loaded(lacks: str, tmp_path: Path) -> None:
    folder = rewritten(tmp_path / "student", lambda tensors: tensors.pop(lacks))
    with pytest.raises(CheckpointError, match=f"student: expected all weights of the model, found none of .*{lacks}"):
        hf.superfluous(folder)
    with pytest.raises(CheckpointError, match=f"found none of .*{lacks}"):
        hf.load_model(folder, "float32")


def test_weights_of_another_shape_are_told_with_both(tmp_path: Path) -> None:
    folder = rewritten(tmp_path / "student", lambda tensors: tensors.update({QUERIES: torch.ones(8, 4)}))
    for load in (hf.superfluous, lambda folder: hf.load_model(folder, "float32")):
        with pytest.raises(CheckpointError, match=r"q_proj.weight of the shape \[128, 128\], .* found \[8, 4\]"):
            load(folder)


def test_weights_of_no_part_are_told(tmp_path: Path) -> None:
    assert hf.superfluous(PAIR / "student") == hf.superfluous(PAIR / "teacher") == []
    other = "model.language_model.extra.weight"
    folder = rewritten(tmp_path / "student", lambda tensors: tensors.setdefault(other, tensors[QUERIES].clone()))
    assert hf.superfluous(folder) == [other]


def test_layers_that_config_json_does_not_count_are_refused(tmp_path: Path) -> None:
    further = QUERIES.replace("layers.1", "layers.9")
    folder = rewritten(tmp_path / "student", lambda tensors: tensors.setdefault(further, tensors[QUERIES].clone()))
    with pytest.raises(CheckpointError, match=f"fewer layers than the weights have: 1 are of .*{further}"):
        hf.superfluous(folder)
