"""Orders questions by difficulty from 1 to 10 (appendix F.1): the unmasked teacher's rating or its label likelihood."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import numpy as np

from masters_ray import data
from masters_ray.config import Config, Difficulty
from masters_ray.errors import DataError
from masters_ray.files import append_lines, read_lines
from masters_ray.models import weights
from masters_ray.pipeline.parallel import batches, map_unordered
from masters_ray.progress import say, track
from masters_ray.records import Problem
from masters_ray.replicas.pool import Pool

HARDEST = 10
_MIDDLE = 5.5
_CALLS: Mapping[Difficulty, str] = {"rating": "rate", "likelihood": "label_likelihoods"}


class Ordered(Sequence[Problem]):
    """A view of the problems in another order."""

    def __init__(self, problems: data.Problems, order: Sequence[int]) -> None:
        """order: new position → old position."""
        self._problems, self._order = problems, order

    def __len__(self) -> int:
        return len(self._order)

    @overload
    def __getitem__(self, where: int) -> Problem: ...

    @overload
    def __getitem__(self, where: slice) -> list[Problem]: ...

    def __getitem__(self, where: int | slice) -> Problem | list[Problem]:
        if isinstance(where, slice):
            return [self._problems[old] for old in self._order[where]]
        return self._problems[self._order[where]]

    def digest(self, position: int) -> str:
        """Returns ``self[position].digest`` without reading the problem."""
        return self._problems.digest(self._order[position])


Questions = data.Problems | Ordered
"""Training questions in the order in which they are asked."""


class QuestionOrder:
    """The order in which a run asks its training questions (``data.order``)."""

    def __init__(self, config: Config, problems: data.Problems, folder: Path) -> None:
        """folder: holds the files of difficulties."""
        self._config, self._problems, self._folder = config, problems, folder

    @cached_property
    def _difficulties(self) -> Difficulties | None:
        if self._config.data.order == "seeded":
            return None
        teacher = weights.digest(weights.locate(self._config.teacher.checkpoint))
        return Difficulties(self._folder, self._config.data.difficulty, teacher)

    @property
    def known(self) -> bool:
        """Whether the order is seeded, or the first teacher has been asked about every question."""
        return self._difficulties is None or not self._difficulties.missing(self._problems)

    def ask(self, teachers: Pool) -> None:
        """Asks the first teacher, which the caller has unmasked, for the difficulties that are missing."""
        if self._difficulties is not None:
            self._difficulties.ask(teachers, self._problems, self._config.rollout.batch_rows)

    @cached_property
    def digests(self) -> frozenset[str]:
        """The digests of all questions."""
        return frozenset(self._problems.digest(position) for position in range(len(self._problems)))

    @cached_property
    def questions(self) -> Questions:
        """The questions in the run's order. Raises DataError when more than data.max_unrated_share are unrated."""
        if self._difficulties is None:
            return self._problems
        return Ordered(self._problems, self._difficulties.order(self._problems, self._config.data.max_unrated_share))


class Difficulties:
    """The teacher's output for each question, appended to a file as it arrives, so that a killed call resumes."""

    def __init__(self, folder: Path, difficulty: Difficulty, teacher: str) -> None:
        """teacher: digest of its weights; each teacher has its own file."""
        self._difficulty = difficulty
        self._file = folder / f"{difficulty}-{teacher[:16]}.jsonl"
        self._found: dict[str, float | None] = {row["question"]: row["said"] for row in read_lines(self._file)}

    def missing(self, problems: data.Problems) -> list[int]:
        """Returns the positions of the questions that the teacher has not been asked about."""
        return [position for position in range(len(problems)) if problems.digest(position) not in self._found]

    def ask(self, teachers: Pool, problems: data.Problems, size: int) -> None:
        """Asks about the missing questions, ``size`` in each call."""
        missing = self.missing(problems)

        def ask(share: Sequence[int]) -> list[float | None]:
            said: list[float | None] = teachers.call_again(
                _CALLS[self._difficulty], [problems[index] for index in share]
            )
            return said

        with track("difficulty", len(missing)) as advance:
            for share, said in map_unordered(ask, batches(missing, size), teachers.most_calls_at_once):
                rows: list[dict[str, Any]] = [
                    {"question": problems.digest(position), "said": one}
                    for position, one in zip(share, said, strict=True)
                ]
                append_lines(self._file, rows)
                self._found |= {row["question"]: row["said"] for row in rows}
                advance(len(share))

    def order(self, problems: data.Problems, max_unrated_share: float) -> list[int]:
        """Returns positions, easiest first; ties keep their order, and unrated questions count as 5.5. Raises DataError
        when more than ``max_unrated_share`` are unrated."""
        said = [self._found[problems.digest(position)] for position in range(len(problems))]
        unrated = sum(one is None for one in said)
        if unrated > max_unrated_share * len(said):
            raise DataError(
                f"{self._file}: {unrated} of {len(said)} questions have no difficulty; data.max_unrated_share allows "
                f"{max_unrated_share:g}. A teacher that cannot rate can be measured: data.difficulty=likelihood. Or "
                "set data.order=seeded."
            )
        levels = _ratings(said) if self._difficulty == "rating" else _tenths(said)
        counts = np.bincount(np.rint(levels).astype(int), minlength=HARDEST + 1)[1:]
        say(f"questions by difficulty 1 to {HARDEST}: {' '.join(map(str, counts))}; {unrated} in the middle unrated")
        return np.argsort(levels, kind="stable").tolist()


def _ratings(said: Sequence[float | None]) -> np.ndarray:
    return np.array([_MIDDLE if one is None else one for one in said], float)


def _tenths(said: Sequence[float | None]) -> np.ndarray:
    """Returns levels: 1 for the tenth of the questions with the likeliest labels, 10 for the least likely tenth."""
    known = np.array(sorted((one for one in said if one is not None), reverse=True))
    ranks = {value: rank for rank, value in reversed(list(enumerate(known)))}
    return np.array([_MIDDLE if one is None else 1 + ranks[one] * HARDEST // len(known) for one in said], float)
