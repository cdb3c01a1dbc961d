"""The order of a run's training questions: seeded, or by difficulty from 1 to 10 (appendix F.1)."""

import hashlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from masters_ray import data
from masters_ray.config import Config, Difficulty
from masters_ray.errors import DataError
from masters_ray.files import append_lines, read_lines
from masters_ray.models import weights
from masters_ray.pipeline.inputs import digest_of
from masters_ray.pipeline.parallel import batches, map_unordered
from masters_ray.progress import say, track
from masters_ray.records import Problem
from masters_ray.replicas.pool import Pool

HARDEST = 10
_MIDDLE = 5.5
_CALLS: Mapping[Difficulty, str] = {"rating": "rate", "likelihood": "label_likelihoods"}


class Questions:
    """A run's training questions in the order in which they are asked (``data.order``).

    With easy_to_hard the first teacher rates each question, or the likelihood of its label. What it says is appended to
    a file as it arrives, so that a killed call resumes; each teacher has its own file.
    """

    def __init__(self, config: Config, problems: data.Problems, folder: Path) -> None:
        """folder: holds the files of difficulties."""
        self._config, self._problems, self._folder = config, problems, folder

    def __getitem__(self, where: slice) -> list[Problem]:
        return [self._problems[seeded] for seeded in self._order[where]]

    def key(self, part: range) -> dict[str, str]:
        """Returns what the key of a store with the questions at ``part`` says of them: "data", the digest of all
        questions in any order, and "questions", that of ``part`` in its order, once the order is known."""
        key = {"data": digest_of(self._problems)}
        if self.known:
            digests = self._problems.digests[self._order[part.start : part.stop]]
            key["questions"] = hashlib.sha256(digests.tobytes()).hexdigest()
        return key

    @property
    def known(self) -> bool:
        """Whether the order is seeded, or the first teacher has been asked about every question."""
        return self._config.data.order == "seeded" or not self._unasked()

    def ask(self, teachers: Pool) -> None:
        """Asks the first teacher, which the caller has unmasked, about the questions that it was not asked about."""
        unasked, call = self._unasked(), _CALLS[self._config.data.difficulty]

        def ask(share: Sequence[int]) -> Any:
            return teachers.call_again(call, [self._problems[seeded] for seeded in share])

        with track("difficulty", len(unasked)) as advance:
            shares = batches(unasked, self._config.rollout.batch_rows)
            for share, said in map_unordered(ask, shares, teachers.most_calls_at_once):
                news = dict(zip(map(self._problems.digest, share), said, strict=True))
                append_lines(self._file, [{"question": digest, "said": level} for digest, level in news.items()])
                self._said.update(news)
                advance(len(share))

    @cached_property
    def _file(self) -> Path:
        teacher = weights.digest(weights.locate(self._config.teacher.checkpoint))
        return self._folder / f"{self._config.data.difficulty}-{teacher[:16]}.jsonl"

    @cached_property
    def _said(self) -> dict[str, float | None]:
        """Digest of a question → the teacher's rating or log-likelihood; None: it gave none."""
        return {row["question"]: row["said"] for row in read_lines(self._file)}

    def _unasked(self) -> list[int]:
        return [seeded for seeded in range(len(self._problems)) if self._problems.digest(seeded) not in self._said]

    @cached_property
    def _order(self) -> np.ndarray:
        """Seeded position of each question [questions]; easiest first, ties in seeded order, unrated ones as 5.5.
        Raises DataError when more than data.max_unrated_share are unrated."""
        settings, count = self._config.data, len(self._problems)
        if settings.order == "seeded":
            return np.arange(count)
        said = [self._said[self._problems.digest(seeded)] for seeded in range(count)]
        unrated = said.count(None)
        if unrated > settings.max_unrated_share * count:
            raise DataError(
                f"{self._file}: {unrated} of {count} questions have no difficulty; data.max_unrated_share allows "
                f"{settings.max_unrated_share:g}. A teacher that cannot rate can be measured: "
                "data.difficulty=likelihood. Or set data.order=seeded."
            )
        levels = np.array([_MIDDLE if level is None else level for level in _levels(said, settings.difficulty)])
        counts = np.bincount(np.rint(levels).astype(int), minlength=HARDEST + 1)[1:]
        say(f"questions by difficulty 1 to {HARDEST}: {' '.join(map(str, counts))}; {unrated} in the middle unrated")
        return np.argsort(levels, kind="stable")


def _levels(said: Sequence[float | None], difficulty: Difficulty) -> Sequence[float | None]:
    """Returns ratings as they are. Likelihoods become 1 for the tenth of the questions with the likeliest labels, up to
    10 for the least likely tenth."""
    if difficulty == "rating":
        return said
    known = sorted((one for one in said if one is not None), reverse=True)
    ranks = {value: rank for rank, value in reversed(list(enumerate(known)))}
    return [None if one is None else 1 + ranks[one] * HARDEST // len(known) for one in said]
