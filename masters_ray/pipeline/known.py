"""What one model said of the answers of a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from masters_ray.actors.model import ScoredBatch, TokenIds
from masters_ray.records import Refused
from masters_ray.store import Ragged

Wanted = Mapping[int, Sequence[TokenIds]]
"""Question's index in the batch → token ids of its answers."""


class Known:
    """Grows by what the model is asked. Answers that are the same to the token have one score, so that rounding cannot
    prefer one of them."""

    def __init__(self, questions: int) -> None:
        self.prompt_tokens = [0] * questions
        """Of each question with its pictures; 0 where the model was not asked."""
        self.refused: dict[int, Refused] = {}
        self._places: list[dict[TokenIds, int]] = [{} for _ in range(questions)]
        self._parts: list[Ragged] = []
        self._size = 0

    def add(self, answers: Sequence[Sequence[TokenIds]], scored: ScoredBatch) -> None:
        """What the model said of these answers to each question."""
        self.refused |= scored.refused
        for index, group in enumerate(answers):
            if index in scored.refused:
                continue
            self.prompt_tokens[index] = scored.prompt_tokens[index] or self.prompt_tokens[index]
            for token_ids in group:
                self._places[index].setdefault(token_ids, self._size)
                self._size += 1
        self._parts.append(scored.tokens)

    def missing(self, wanted: Wanted) -> list[list[TokenIds]]:
        """Of each question of the batch the answers that the model has not said anything of, each once."""
        return [
            [ids for ids in dict.fromkeys(wanted.get(index, ())) if ids not in places]
            for index, places in enumerate(self._places)
        ]

    def take(self, wanted: Wanted) -> Ragged:
        """What the model said of these answers, question after question."""
        return Ragged.joined(self._parts).take(
            [self._places[index][token_ids] for index, group in wanted.items() for token_ids in group]
        )
