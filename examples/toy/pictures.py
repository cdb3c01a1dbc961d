"""easy-vqa's pictures as tensors: what the shape is and where, shifted and mirrored copies, and patches for a model."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from examples import easy_vqa

SIDE = easy_vqa.SIDE
UNKNOWN = -1
"""Stands for a label that the package's questions do not give away, or a place on a middle line."""


@dataclass(frozen=True)
class Pictures:
    """A set of pictures with all that is known about them; row ``i`` of every array is one picture."""

    numbers: np.ndarray
    """(n,) the package's numbers."""
    pixels: torch.Tensor
    """(n, 3, 64, 64) uint8."""
    boxes: np.ndarray
    """(n, 4) left, top, right, bottom in pixels."""
    labels: np.ndarray
    """(n, 3) position in ``easy_vqa.LABELS`` of colour, shape and place, or ``UNKNOWN``."""

    def __len__(self) -> int:
        return len(self.numbers)

    def part(self, rows: slice) -> Pictures:
        """Some of the pictures."""
        return Pictures(self.numbers[rows], self.pixels[rows], self.boxes[rows], self.labels[rows])


def read_pictures(split: easy_vqa.Split) -> Pictures:
    """All pictures of a split by ascending number. Raises DataError when the package is missing or damaged."""
    said: dict[int, dict[int, int]] = {}
    for question, answer, number in easy_vqa.read_questions(split):
        if answer in ("yes", "no"):
            continue
        known = said.setdefault(number, {})
        for at, kind in enumerate(("colour", "shape")):
            for index, label in enumerate(easy_vqa.LABELS[kind]):
                if answer == label or f" {label} " in question.replace("?", " "):
                    known[at] = index
    paths = easy_vqa.picture_paths(split)
    pixels = np.empty((len(paths), SIDE, SIDE, 3), dtype=np.uint8)
    boxes = np.empty((len(paths), 4), dtype=np.int64)
    labels = np.full((len(paths), 3), UNKNOWN, dtype=np.int64)
    for row, (number, path) in enumerate(paths.items()):
        with Image.open(path) as picture:
            rgb = picture.convert("RGB")
        pixels[row] = np.asarray(rgb)
        boxes[row] = easy_vqa.shape_box(rgb)
        for at, index in said.get(number, {}).items():
            labels[row, at] = index
        labels[row, 2] = place_index(boxes[row])
    return Pictures(np.array(list(paths)), torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), boxes, labels)


def place_index(box: np.ndarray) -> int:
    """Position of the shape's place in ``easy_vqa.PLACES``, or ``UNKNOWN``."""
    left, top, right, bottom = (int(edge) for edge in box)
    place = easy_vqa.place_of((left, top, right, bottom))
    return UNKNOWN if place is None else easy_vqa.PLACES.index(place)


def vary(picture: torch.Tensor, box: np.ndarray, generator: np.random.Generator) -> tuple[torch.Tensor, int]:
    """A copy of ``picture`` (3, 64, 64) mirrored half of the time and shifted, its shape whole; and its new place."""
    left, top, right, bottom = (int(edge) for edge in box)
    if generator.random() < 0.5:
        picture = picture.flip(-1)
        left, right = SIDE - right, SIDE - left
    across = int(generator.integers(-left, SIDE - right + 1))
    down = int(generator.integers(-top, SIDE - bottom + 1))
    moved = np.array([left + across, top + down, right + across, bottom + down])
    return picture.roll((down, across), (-2, -1)), place_index(moved)


def to_patches(pixels: torch.Tensor, patch: int = 8, merge: int = 2) -> torch.Tensor:
    """What the processor makes of uint8 ``pixels`` (n, 3, 64, 64): (n * 64, 3 * 2 * patch * patch) float32.

    Rows run over blocks of merge x merge patches, as Qwen3-VL expects; each picture is its own second frame.
    """
    count, channels, height, width = pixels.shape
    scaled = pixels.float() / 127.5 - 1
    blocks = scaled.reshape(
        count, channels, height // patch // merge, merge, patch, width // patch // merge, merge, patch
    )
    rows = blocks.permute(0, 2, 5, 3, 6, 1, 4, 7)
    rows = rows.reshape(count * (height // patch) * (width // patch), channels, 1, patch, patch)
    return rows.expand(-1, -1, 2, -1, -1).reshape(len(rows), -1)


def grid(count: int, patch: int = 8) -> torch.Tensor:
    """(count, 3) frames, rows and columns of patches of 64 x 64 pictures."""
    return torch.tensor([[1, SIDE // patch, SIDE // patch]]).repeat(count, 1)
