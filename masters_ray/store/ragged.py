"""Per-token arrays of many answers, concatenated into a few flat arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Ragged:
    """Columns over the tokens of several answers, concatenated in the order of the answers, so that no object per
    answer is sent between processes or stored.

    Example: answers of 2 and 1 tokens have ``lengths=[2, 1]`` and columns of 3 rows; ``take([1, 0])`` has the last row
    first. Without answers there are no columns.
    """

    lengths: np.ndarray
    """int64 [answers], number of tokens of each answer."""
    columns: Mapping[str, np.ndarray]
    """Name → array [tokens of all answers, …]."""

    @classmethod
    def joined(cls, parts: Sequence[Ragged]) -> Ragged:
        """Concatenates the answers of all parts, in order."""
        filled = [part for part in parts if len(part.lengths)]
        if len(filled) < 2:
            return filled[0] if filled else NO_ANSWERS
        columns = {name: np.concatenate([part.columns[name] for part in filled]) for name in filled[0].columns}
        return cls(lengths=np.concatenate([part.lengths for part in filled]), columns=columns)

    def take(self, answers: Sequence[int]) -> Ragged:
        """Returns the answers at these indices, in this order; an index may repeat."""
        if not len(answers):
            return NO_ANSWERS
        starts = np.cumsum(self.lengths) - self.lengths
        lengths = self.lengths[answers]
        begin = np.cumsum(lengths) - lengths
        rows = np.repeat(starts[answers] - begin, lengths) + np.arange(int(lengths.sum()))
        return Ragged(lengths=lengths, columns={name: column[rows] for name, column in self.columns.items()})


NO_ANSWERS = Ragged(lengths=np.empty(0, np.int64), columns={})
