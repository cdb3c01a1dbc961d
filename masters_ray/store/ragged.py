"""Numbers per token of many answers, as few arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Ragged:
    """Columns over the tokens of some answers, one answer after the other: what travels between processes, and is
    stored, without an object per answer.

    Example: answers of 2 and 1 tokens have ``lengths=[2, 1]`` and columns of 3 rows; ``take([1, 0])`` has the last row
    first. Without answers there are no columns.
    """

    lengths: np.ndarray
    """int64 [answers], tokens of each."""
    columns: Mapping[str, np.ndarray]
    """Name → array [tokens, …]."""

    @classmethod
    def joined(cls, parts: Sequence[Ragged]) -> Ragged:
        """All answers of all parts, in their order."""
        filled = [part for part in parts if len(part.lengths)]
        if len(filled) < 2:
            return filled[0] if filled else NO_ANSWERS
        columns = {name: np.concatenate([part.columns[name] for part in filled]) for name in filled[0].columns}
        return cls(lengths=np.concatenate([part.lengths for part in filled]), columns=columns)

    def take(self, answers: Sequence[int]) -> Ragged:
        """These answers, in this order; one may come twice."""
        if not len(answers):
            return NO_ANSWERS
        starts = np.cumsum(self.lengths) - self.lengths
        lengths = self.lengths[answers]
        begin = np.cumsum(lengths) - lengths
        rows = np.repeat(starts[answers] - begin, lengths) + np.arange(int(lengths.sum()))
        return Ragged(lengths=lengths, columns={name: column[rows] for name, column in self.columns.items()})


NO_ANSWERS = Ragged(lengths=np.empty(0, np.int64), columns={})
