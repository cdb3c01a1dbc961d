"""Held-out questions that a student also learns from: accuracy on them says what it remembers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from masters_ray.data.spool import Problems

_EXAMPLES = 3


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """Counts of held-out questions."""

    same_question: int
    """That are training questions too: same words (case and punctuation aside), same pictures."""
    same_picture: int
    """Whose pictures stand in training, with other questions."""
    examples: list[str]
    """Ids of the former."""


def overlap(train: Problems, held_out: Problems) -> Overlap:
    """What two sources have in common, by digests of words and pictures' contents. Raises DataError."""
    asked = np.isin(held_out.column("asked"), train.column("asked"))
    shown = np.isin(held_out.column("shown"), train.column("shown"))
    return Overlap(
        same_question=int(asked.sum()),
        same_picture=int((shown & ~asked).sum()),
        examples=[held_out[int(position)].id for position in np.flatnonzero(asked)[:_EXAMPLES]],
    )
