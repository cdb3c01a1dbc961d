"""Plans a run (METHOD 2 and 8): its stages with their mask ratios, its iterations, and which iterations are online."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import floor

from masters_ray.config import Schedule


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A part of the run with one masked teacher."""

    index: int
    ratio: float  # mask ratio: fraction of every masked matrix that is zeroed
    teacher: int = 0  # index of the teacher among the run's teachers, the smallest first


def ratios(schedule: Schedule) -> list[tuple[float, Fraction]]:
    """Returns (mask ratio, share of the schedule's iterations) of each stage; the shares add up to 1.

    These are M = max_ratio / step + 1 equal stages max_ratio, max_ratio − step, …, 0 (METHOD 2, eq. of the schedule),
    or the stages that the configuration lists.

    Example: ``Schedule(max_ratio=0.2, step=0.05)`` has ratios 0.2, 0.15, 0.1, 0.05, 0.0, each for a fifth of the run.
    """
    if schedule.stages:
        shares = [Fraction(1) if one.share is None else Fraction(repr(one.share)) for one in schedule.stages]
        return [(one.ratio, share / sum(shares)) for one, share in zip(schedule.stages, shares, strict=True)]
    steps = round(schedule.max_ratio / schedule.step)
    falling = (round(max(0.0, schedule.max_ratio - i * schedule.step), 10) for i in range(steps + 1))
    return [(ratio, Fraction(1, steps + 1)) for ratio in falling]


def plan(schedules: Sequence[Schedule], rows: int) -> list[tuple[Stage, range]]:
    """Returns the stages of a run, each with the data positions that it trains on.

    schedules: one per teacher. Each teacher gets an equal consecutive part of the ``rows`` positions, which its stages
    split by their shares; a schedule with ``stage_data=all`` gives every stage all positions.
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
    """A planned optimizer step; they are counted from 1, over all stages."""

    number: int
    stage: int
    positions: range  # positions of its questions in the seeded order of the data
    online: bool = False  # its questions are answered during training, by a recent student


def iterations(plan: Sequence[tuple[Stage, range]], groups_per_step: int, online_fraction: float) -> list[Iteration]:
    """Returns all iterations of a run: consecutive questions of a stage, ``groups_per_step`` or fewer at a stage's end.

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
    """Returns whether iteration ``number`` (from 1) is online (appendix F.2). Of the first n iterations n · fraction
    are online, rounded to the nearest integer, which spreads them evenly.

    Example: with 0.2 iterations 3, 8, 13, … are online, with 1 all, with 0 none.
    """
    exact = Fraction(repr(fraction))
    return floor(number * exact + Fraction(1, 2)) > floor((number - 1) * exact + Fraction(1, 2))


def evaluated(iterations: Sequence[Iteration], every: str | None, last: bool) -> list[int]:
    """Returns the numbers of the iterations after which the student is measured: multiples of ``every``, or the end of
    each stage for "stage". last: whether the run's last iteration counts, too, whatever its number.

    Example: of stages of 4, 4 and 3 iterations "stage" gives 4 and 8, and 5 gives 5 and 10.
    """
    if every is None or not iterations:
        return []
    final = iterations[-1].number
    ends = {one.stage: one.number for one in iterations}.values()
    due = {*ends} if every == "stage" else {*range(int(every), final, int(every))}
    return sorted(due - {final} | ({final} if last else set()))


def version_for(number: int, max_staleness: int, learned: int = 0) -> int:
    """Returns the version of the student that writes for iteration ``number``; a version counts the iterations learned.
    It is the oldest allowed, number − 1 − max_staleness, so that rollouts overlap with the iterations in between.
    learned: the oldest existing version, from which a resumed learner starts."""
    return max(learned, number - 1 - max_staleness)
