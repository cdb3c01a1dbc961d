"""What a run takes, phase by phase: a recurrence over its optimizer steps (appendix F.2 and F.9).

    groups of n are begun     when those before are made and version n − 1 − max_staleness is published;
                              in turns: when the learner has come to n
    step n is begun           when step n − 1 is done, its version published if an iteration wants it, and, in an online
                              iteration, the groups of n are made or max_wait_seconds are over

Version 0 is what the engines start with: handing it out is part of the start. Groups that come too late are made to
their end; those of an iteration that the learner has passed are not begun.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from heapq import heappop, heappush

from masters_ray import schedule
from masters_ray.config import Config, Rollout
from masters_ray.errors import Complaint, ConfigError
from masters_ray.plan.rates import Rates
from masters_ray.schedule import Iteration, version_for

POOLS = ("teacher", "student", "judge")
"""Replicas of online iterations, by the section of the configuration that counts them. Those of the student take over
the learner's weights; those of the judge keep the weights before training and are the reference policy, too."""


@dataclass(frozen=True, kw_only=True)
class GroupMaking:
    """How questions become groups."""

    calls: Sequence[tuple[str, str, float]]
    """(pool, method, seconds for each question) in the order in which a batch makes them, as ``Rates.calls``."""
    replicas: Mapping[str, int]
    """By pool."""
    batch_rows: int
    """Questions of a batch; the last may have fewer."""

    def seconds(self, questions: int) -> float:
        """Until the last group is made. Replicas take calls in the order in which they come, one after the other, as
        an engine admits the sequences of several calls.

        Example: two batches, whose answers take 3 s and whose verdicts 1 s, on one replica of each pool are made in
        3 + 3 + 1 s: the first is judged while the second is answered.
        """
        rounds = [list(found) for _, found in itertools.groupby(self.calls, key=lambda call: call[1])]
        free = {pool: [0.0] * count for pool, count in self.replicas.items()}
        todo = [(0.0, first, 0) for first in range(0, questions, self.batch_rows)]
        last = 0.0
        while todo:
            ready, first, number = heappop(todo)
            ends = []
            for pool, _, seconds in rounds[number]:
                begun = max(ready, heappop(free[pool]))
                ends.append(begun + seconds * min(self.batch_rows, questions - first))
                heappush(free[pool], ends[-1])
            last = max(last, *ends)
            if number + 1 < len(rounds):
                heappush(todo, (max(ends), first, number + 1))
        return last


@dataclass(frozen=True, kw_only=True)
class LearningTimes:
    """The learner's phase."""

    seconds: float
    """With the start."""
    waited_seconds: float
    """That the learner waited for groups."""
    ages: tuple[int, ...]
    """Of each iteration that was learned from its own groups: optimizer steps by which their writer was behind."""
    late: int
    """Online iterations whose groups did not come in time."""
    questions: int
    """Of the online iterations whose groups were begun."""
    published: int
    """Versions that the learner handed out."""


def learning(
    iterations: Sequence[Iteration], making_seconds: Callable[[int], float], rates: Rates, rollout: Rollout
) -> LearningTimes:
    """The recurrence above; a run whose start is not known counts as started. making_seconds: an iteration's questions
    → seconds until their groups are made, once the student's replicas hold its version.

    Example: 10 steps of 2 s without an online one take 20 s. If the fifth is online, and its groups take 3 s, they
    take 23 s strictly on-policy, 21 s one step behind, and 20 s two steps behind.
    """
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


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What a configuration's run takes."""

    online_fraction: float
    replicas: Mapping[str, int]
    """By pool."""
    steps: int
    rollouts_seconds: float
    """Of the stages' rollouts before learning, without the engines' start."""
    learning: LearningTimes
    learner_busy: float
    """Fraction of the learning phase in which the learner is at a step; publishing does not count."""
    pool_busy: Mapping[str, float]
    """By pool: the fraction in which a replica works on a call or loads weights; mean of its replicas."""


def forecast(config: Config, rates: Rates) -> Forecast:
    """A configuration's run at these rates. Raises ConfigError when the number of questions is not known."""
    rollout, judge, questions = config.rollout, config.judge, config.data.train.rows
    if questions is None:
        complaint = Complaint(
            where="data.train.rows", expected="a number of questions", found="none", remedy="Set it, or --questions."
        )
        raise ConfigError([complaint])
    stages = schedule.plan(config.schedules, questions)
    iterations = schedule.iterations(stages, config.learner.groups_per_step, rollout.online_fraction)
    replicas = dict(zip(POOLS, (config.teacher.replicas, config.student.replicas, judge.replicas), strict=True))

    def making(calls: Mapping[str, float], roles: Mapping[str, str]) -> GroupMaking:
        """roles: those that processes of another pool play."""
        named = [(name.partition("."), seconds) for name, seconds in calls.items()]
        played = [(roles.get(role, role), method, seconds) for (role, _, method), seconds in named]
        return GroupMaking(calls=played, replicas=replicas, batch_rows=rollout.batch_rows)

    online = making(rates.calls, {"reference": "judge", "judge": "student" if judge.follows_student else "judge"})
    # Before learning the student that writes is the reference policy, too, and scores once.
    once = {name: seconds for name, seconds in rates.calls.items() if name != "student.score"}
    offline = making(once, {"reference": "student", "judge": "student" if judge.share_process else "judge"})
    made_before: Counter[int] = Counter()
    for one in iterations:
        made_before[one.stage] += len(one.positions) * (rollout.spare_rows or not one.online)
    learned = learning(iterations, cache(online.seconds), rates, rollout)
    busy = dict.fromkeys(POOLS, 0.0) | {"student": learned.published * rates.load_seconds}
    for pool, _, seconds in online.calls:
        busy[pool] += learned.questions * seconds / replicas[pool]
    return Forecast(
        online_fraction=rollout.online_fraction,
        replicas=replicas,
        steps=len(iterations),
        rollouts_seconds=sum(map(cache(offline.seconds), made_before.values())),
        learning=learned,
        learner_busy=len(iterations) * rates.learner_seconds / learned.seconds,
        pool_busy={pool: busy[pool] / learned.seconds for pool in POOLS},
    )
