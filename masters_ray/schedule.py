"""When which mask ratio holds (METHOD 2): the stages of a run and the share of the data that each one sees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from masters_ray.config import Schedule


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A stretch of the run with one masked teacher."""

    index: int
    """Counts from 0."""
    ratio: float
    """Fraction of every masked matrix that is zero."""
    teacher: int = 0
    """Which of the run's teachers, the smallest first."""


def ratios(schedule: Schedule) -> list[tuple[float, Fraction]]:
    """(mask ratio, share of the schedule's iterations) of each stage; the shares add up to 1.

    max_ratio, max_ratio − step, …, 0: M = max_ratio / step + 1 equal stages (METHOD 2, eq. of the schedule), or the
    list that the configuration gives.

    Example: ``Schedule(max_ratio=0.2, step=0.05)`` has the ratios 0.2, 0.15, 0.1, 0.05, 0.0, each for a fifth.
    """
    if schedule.stages:
        shares = [Fraction(1) if one.share is None else Fraction(repr(one.share)) for one in schedule.stages]
        return [(one.ratio, share / sum(shares)) for one, share in zip(schedule.stages, shares, strict=True)]
    steps = round(schedule.max_ratio / schedule.step)
    falling = (round(max(0.0, schedule.max_ratio - i * schedule.step), 10) for i in range(steps + 1))
    return [(ratio, Fraction(1, steps + 1)) for ratio in falling]


def plan(schedules: Sequence[Schedule], rows: int) -> list[tuple[Stage, range]]:
    """The stages of a run and the positions of the data that each one sees.

    schedules: of each teacher. Stages that share the data split it into consecutive parts, every teacher the same part
    of it; where a teacher's schedule says ``all``, each of its stages sees all of them.
    """
    teachers = len(schedules)
    found: list[tuple[Stage, range]] = []
    for teacher, schedule in enumerate(schedules):
        reached = Fraction(teacher, teachers)
        for ratio, share in ratios(schedule):
            stage = Stage(index=len(found), ratio=ratio, teacher=teacher)
            begin, reached = reached, reached + share / teachers
            part = range(int(rows * begin), int(rows * reached))
            found.append((stage, range(rows) if schedule.stage_data == "all" else part))
    return found
