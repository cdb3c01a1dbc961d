"""Checkpoints of a build: written under a temporary name and renamed, so that a killed build finds a whole one."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch

from examples.toy.recipe import Recipe
from masters_ray.errors import CheckpointError


class Checkpoints:
    """The newest state of each stage of one model's build, in one folder."""

    def __init__(self, folder: Path, recipe: Recipe) -> None:
        self.folder, self.recipe = folder, recipe
        folder.mkdir(parents=True, exist_ok=True)

    def write(self, stage: str, state: dict[str, Any]) -> None:
        """Replace the state of ``stage`` (tensors, numbers, texts, lists and dicts of them)."""
        path = self.folder / f"{stage}.pt"
        fresh = path.with_suffix(".new")
        torch.save({"recipe": self._key(stage), "state": state}, fresh)
        os.replace(fresh, path)

    def read(self, stage: str) -> dict[str, Any] | None:
        """The state of ``stage``, or None. Raises CheckpointError when it was made by another recipe."""
        path = self.folder / f"{stage}.pt"
        if not path.exists():
            return None
        found = torch.load(path, weights_only=True)
        if found["recipe"] != self._key(stage):
            raise CheckpointError(
                f"expected a state made by the same recipe in {path}, found another; "
                "name another work folder or delete it"
            )
        state: dict[str, Any] = found["state"]
        return state

    def _key(self, stage: str) -> str:
        return json.dumps(self.recipe.up_to(stage), sort_keys=True)
