"""What a run does when (METHOD 2 and 8): stages with their mask ratios, iterations, and which of them are online."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import floor

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


@dataclass(frozen=True, kw_only=True)
class Iteration:
    """One optimizer step as it is planned, before anything is made."""

    number: int
    """Counts from 1, over all stages."""
    stage: int
    positions: range
    """Of its questions in the seeded order of the data."""
    online: bool = False
    """Its questions are answered afresh while the student learns."""


def iterations(plan: Sequence[tuple[Stage, range]], groups_per_step: int, online_fraction: float) -> list[Iteration]:
    """Every iteration of a run: consecutive questions of one stage, ``groups_per_step`` or, at a stage's end, fewer.

    Example: stages of 100 and 64 questions at 64 a step are iterations of 64, 36 and 64 questions.
    """
    parts = [
        (stage.index, positions[start : start + groups_per_step])
        for stage, positions in plan
        for start in range(0, len(positions), groups_per_step)
    ]
    return [
        Iteration(number=number, stage=stage, positions=part, online=is_online(number, online_fraction))
        for number, (stage, part) in enumerate(parts, 1)
    ]


def is_online(number: int, fraction: float) -> bool:
    """Whether iteration ``number`` (from 1) is online (appendix F.2). After n iterations n · fraction of them were,
    rounded to the nearest whole number, so that they are spread evenly and the share is as exact as can be.

    Example: with 0.2 iterations 3, 8, 13, … are online, with 1 all, with 0 none.
    """
    exact = Fraction(repr(fraction))
    return floor(number * exact + Fraction(1, 2)) > floor((number - 1) * exact + Fraction(1, 2))


def version_for(number: int, max_staleness: int, learned: int = 0) -> int:
    """The version of the student that writes for iteration ``number``, as the iterations that it has seen: the oldest
    one that may, ``max_staleness`` behind the weights that the iteration starts with, so that its answers are made
    while the learner does those between. learned: the oldest version that there is, of a learner that goes on."""
    return max(learned, number - 1 - max_staleness)
