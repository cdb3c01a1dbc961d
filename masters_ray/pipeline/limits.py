"""How much may go wrong before a stage stops: bad rows and answers that teach nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from masters_ray.config import Rollout
from masters_ray.errors import DataError
from masters_ray.records import AnswerTally, Rejected

_ENOUGH_ANSWERS = 400
"""From so many answers on a share of them says something."""
_EXAMPLES = 3


class Limits:
    """Looks after every batch; raises DataError with counts and examples when a limit is passed."""

    def __init__(self, rollout: Rollout, questions: int, folder: str) -> None:
        self._rollout, self._questions, self._folder = rollout, questions, folder
        self._examples: dict[str, list[Rejected]] = {}
        self.set_aside: Counter[str] = Counter()
        """Questions without a row, by kind."""

    def look(self, rejected: Iterable[Rejected], tally: AnswerTally, *, finished: bool = False) -> None:
        """rejected: further questions without a row. finished: all questions were asked, so that every answer counts
        however few there are."""
        for one in rejected:
            self.set_aside[one.kind] += 1
            if self.set_aside[one.kind] <= _EXAMPLES:
                self._examples.setdefault(one.kind, []).append(one)
        allowed = self._rollout.max_set_aside_share
        if self.set_aside.total() > allowed * self._questions:
            raise DataError(self._told(allowed))
        if tally.answers < _ENOUGH_ANSWERS and not finished:
            return
        cut = f"are cut at rollout.sampling.max_tokens = {self._rollout.sampling.max_tokens}"
        more = "A larger one gives them more room, in another run.dir. "
        for name, count, answers, key, remedy in (
            ("could not be judged", tally.unjudged, tally.answers, "max_unjudged_share", ""),
            ("have no word", tally.empty, tally.answers, "max_empty_share", ""),
            (f"of the teacher {cut}", tally.teacher_cut, tally.teacher_written, "max_cut_share", more),
            (f"of the student {cut}", tally.student_cut, tally.student_written, "max_cut_share", more),
        ):
            allowed = getattr(self._rollout, key)
            if count > allowed * answers:
                raise DataError(
                    f"{self._folder}: {count} of {answers} answers {name}; rollout.{key} allows {allowed:g}. "
                    f"{remedy}Look at them with: masters-ray store verify {self._folder}. If that is what you want, "
                    f"raise rollout.{key}, and call again: what is stored stays."
                )

    def _told(self, allowed: float) -> str:
        lines = [
            f"  {kind}, {self.set_aside[kind]} times. {one.row}: {one.reason}"
            for kind, examples in self._examples.items()
            for one in examples
        ]
        return "\n".join(
            [
                f"{self._folder}: {self.set_aside.total()} of {self._questions} questions were set aside; "
                f"rollout.max_set_aside_share allows {allowed:g}. The first of each kind:",
                *lines,
                "Mend what they name and choose another run.dir (rollout.reuse takes over the rows made here), "
                "or raise rollout.max_set_aside_share and call again: what is stored stays.",
            ]
        )
