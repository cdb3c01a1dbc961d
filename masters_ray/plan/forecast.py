"""Forecasts the seconds of a run's phases by a recurrence over its optimizer steps (appendix F.2 and F.9).

    groups of step n begin    when the groups before are made and version n − 1 − max_staleness is published;
                              in turns: when the learner has reached n
    step n begins             when step n − 1 is done, its version is published if an iteration wants it, and, in an
                              online iteration, the groups of n are made or max_wait_seconds have passed

Engines start with version 0, so publishing it is part of the start. Groups that come too late are still completed;
groups of an iteration that the learner has passed are not begun.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from masters_ray.config import Config, Rollout
from masters_ray.errors import Complaint, ConfigError
from masters_ray.method import schedule
from masters_ray.method.schedule import Iteration, version_for
from masters_ray.plan.rates import Rates, group_making


@dataclass(frozen=True, kw_only=True)
class LearningTimes:
    """Times and counts of the learner's phase."""

    seconds: float
    """Length of the phase, start included."""
    waited_seconds: float
    ages: tuple[int, ...]
    """For each iteration learned from its own groups: the optimizer steps by which their writer was behind."""
    late: int
    """Online iterations whose groups did not come in time."""
    questions: int
    """Questions in the online iterations whose groups were begun."""
    published: int
    """Versions that the learner published, without version 0."""


@dataclass(frozen=True, kw_only=True)
class Forecast(LearningTimes):
    online_fraction: float
    replicas: Mapping[str, int]
    steps: int
    rollouts_seconds: float
    """Seconds of the stages' rollouts before learning, without the engines' start."""
    pool_busy: Mapping[str, float]
    """Pool → fraction of the learning phase in which a replica works on a call or loads weights; mean of replicas."""


def learning(
    iterations: Sequence[Iteration], making_seconds: Callable[[int], float], rates: Rates, rollout: Rollout
) -> LearningTimes:
    """Evaluates the recurrence above; an unknown start takes 0 s. making_seconds: number of questions of an iteration →
    seconds until their groups are made, once the student's replicas hold the version."""
    versions = {one.number: version_for(one.number, rollout.max_staleness) for one in iterations if one.online}
    wanted = set(versions.values()) - {0}
    free = delivered = rates.start_seconds or 0.0
    published = {0: free}
    waited, questions = 0.0, 0
    ages: list[int] = []
    for one in iterations:
        if one.online:
            version, limit = versions[one.number], free + rollout.max_wait_seconds
            begun = free if rollout.placement == "turns" else max(delivered, published[version])
            if begun <= limit:
                delivered = begun + rates.load_seconds * (version > 0) + making_seconds(len(one.positions))
                questions += len(one.positions)
            if delivered <= limit:
                ages.append(one.number - 1 - version)
            waiting = max(0.0, min(delivered, limit) - free)
            waited, free = waited + waiting, free + waiting
        free += rates.learner_seconds
        if one.number in wanted:
            free += rates.publish_seconds
            published[one.number] = free
    return LearningTimes(
        seconds=free,
        waited_seconds=waited,
        ages=tuple(ages),
        late=len(versions) - len(ages),
        questions=questions,
        published=len(wanted),
    )


def forecast(config: Config, rates: Rates) -> Forecast:
    """Forecasts a configuration's run at these rates. Raises ConfigError when the number of questions is not known."""
    rollout, questions = config.rollout, config.data.train.rows
    if questions is None:
        unknown = Complaint(where="data.train.rows", expected="a number", found="none", remedy="Set it or --questions.")
        raise ConfigError([unknown])
    stages = schedule.plan(config.schedules, questions)
    iterations = schedule.iterations(stages, config.learner.groups_per_step, rollout.online_fraction)
    online, offline = (group_making(config, rates.calls, online=online) for online in (True, False))
    made_before: Counter[int] = Counter()
    for one in iterations:
        made_before[one.stage] += len(one.positions) * (rollout.spare_rows or not one.online)
    learned = learning(iterations, cache(online.seconds), rates, rollout)
    busy = dict.fromkeys(online.replicas, 0.0) | {"student": learned.published * rates.load_seconds}
    for calls in online.rounds:
        for pool, seconds in calls.items():
            busy[pool] += learned.questions * seconds / online.replicas[pool]
    return Forecast(
        **vars(learned),
        online_fraction=rollout.online_fraction,
        replicas=online.replicas,
        steps=len(iterations),
        rollouts_seconds=sum(map(cache(offline.seconds), made_before.values())),
        pool_busy={pool: seconds / learned.seconds for pool, seconds in busy.items()},
    )
