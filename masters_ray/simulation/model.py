"""A run with online iterations, event by event: what it takes, how old its answers are, who waits (appendix F.2).

    learner    start ─► [wait for n's groups] ─► step n ─► [publish version n] ─► …
    producer   weights of version v(n) are there, groups of the online iteration before n are made ─► batches of n
    batch      answers ─► verdicts ─► scores, each round's calls at the same time, on a replica of their pools

Between two events everything gets on at a constant speed, so the simulation is exact up to rounding, and the same every
time.

What the method leaves open is decided as follows. Version 0 is what the engines start with: handing it over is part
of the start. An iteration that the learner went on without is finished all the same, since its calls are under way,
and its groups are left unused; one that the learner has passed before its groups were begun is left out.
"""

from __future__ import annotations

import math
from enum import Enum, auto

from masters_ray.schedule import version_for
from masters_ray.simulation.engines import Engines
from masters_ray.simulation.setup import Outcome, Setup


def simulate(setup: Setup) -> Outcome:
    """What the run takes. The time needed grows with iterations and calls, not faster.

    Example: 10 iterations of 2 s without an online one take 20 s.
    """
    return _Run(setup).outcome()


class _Doing(Enum):
    """The learner's."""

    STEP = auto()
    PUBLISHING = auto()
    WAKING = auto()
    WAITING = auto()
    DONE = auto()


class _Producer:
    """Makes the groups of the online iterations, one iteration after the other."""

    def __init__(self, setup: Setup, engines: Engines) -> None:
        self._setup = setup
        self._engines = engines
        self._next = 0
        """Place in ``setup.online`` of the first iteration that was not begun."""
        self._places = sum(pool.places for pool in setup.pools.values())
        self._rows: list[int] = []
        """Of each batch of the iteration that is made."""
        self._rounds = setup.rounds
        self._rounds_done: list[int] = []
        """Of each batch that was begun."""
        self._calls_open: list[int] = []
        """Of each batch's present round."""
        self._open = 0
        """Batches that are not done."""
        self.making: int | None = None
        self.delivered = 0
        """The last iteration whose groups are made."""

    def begin(self, published: int, passed: int) -> None:
        """Begin the next iteration if nothing else is made and its weights are there.

        published: latest version. passed: last iteration that needs no groups any more.
        """
        setup = self._setup
        while self.making is None and self._next < len(setup.online):
            iteration = setup.online[self._next]
            version = version_for(iteration, setup.max_staleness)
            if iteration > passed and version > published:
                return
            self._next += 1
            if iteration > passed:
                self._engines.expect(version)
                self._start(iteration)

    def call_ended(self, batch: int) -> bool:
        """The batch goes on. Returns whether this was the last call of the iteration."""
        self._calls_open[batch] -= 1
        if self._calls_open[batch]:
            return False
        self._rounds_done[batch] += 1
        if self._rounds_done[batch] < len(self._rounds):
            self._ask(batch)
            return False
        self._open -= 1
        if len(self._rounds_done) < len(self._rows):
            self._begin_batch()
        if not self._open and self.making is not None:
            self.delivered, self.making = self.making, None
            return True
        return False

    def _start(self, iteration: int) -> None:
        full, rest = divmod(self._setup.groups_per_step, self._setup.batch_rows)
        self._rows = [self._setup.batch_rows] * full + [rest] * (rest > 0)
        self._rounds_done, self._calls_open = [], []
        self._open = len(self._rows)
        self.making = iteration
        for _ in range(min(self._places, self._open)):
            self._begin_batch()

    def _begin_batch(self) -> None:
        self._rounds_done.append(0)
        self._calls_open.append(0)
        self._ask(len(self._rounds_done) - 1)

    def _ask(self, batch: int) -> None:
        calls = self._rounds[self._rounds_done[batch]]
        self._calls_open[batch] = len(calls)
        for call in calls:
            self._engines.ask(call.pool, call.seconds(self._rows[batch]), batch)


class _Run:
    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._engines = Engines(setup.pools, setup.load_seconds)
        self._producer = _Producer(setup, self._engines)
        self._online = frozenset(setup.online)
        self._to_publish = {version_for(number, setup.max_staleness) for number in setup.online} - {0}
        self._now = setup.start_seconds
        self._iteration = 1
        """The learner's."""
        self._passed = 0
        """Last iteration whose groups the learner does not need any more."""
        self._published = 0
        self._doing = _Doing.STEP
        self._left = 0.0
        """Seconds of what the learner is doing, had it a core of its own; may be infinite while it waits."""
        self._seconds = dict.fromkeys(_Doing, 0.0)
        """Wall seconds of the learner."""
        self._busy = dict.fromkeys(setup.pools, 0.0)
        """Wall seconds of all replicas of a pool."""
        self._ages: list[int] = []
        self._stored = 0

    def outcome(self) -> Outcome:
        self._producer.begin(0, 0)
        self._approach()
        while self._doing is not _Doing.DONE:
            self._to_next_event()
        wall = self._now
        pools = self._setup.pools
        return Outcome(
            wall_seconds=wall,
            learner_utilisation=self._seconds[_Doing.STEP] / wall,
            waited_seconds=self._seconds[_Doing.WAKING] + self._seconds[_Doing.WAITING],
            pool_utilisation={name: busy / wall / pools[name].replicas for name, busy in self._busy.items()},
            mean_age=sum(self._ages) / len(self._ages) if self._ages else None,
            largest_age=max(self._ages, default=None),
            fresh=len(self._ages),
            stored=self._stored,
            syncs=len(self._to_publish),
        )

    def _to_next_event(self) -> None:
        """Where two fall together, a call ends first: groups that come in the last moment are in time."""
        engines_speed, learner_speed = self._speeds()
        end = self._engines.next_end() if engines_speed else None
        until_end = math.inf if end is None else max(0.0, end - self._engines.now) / engines_speed
        until_learner = self._left / learner_speed
        self._advance(min(until_end, until_learner), engines_speed, learner_speed)
        if until_end <= until_learner:
            batch = self._engines.end_next()
            if batch is not None and self._producer.call_ended(batch):
                self._delivered()
        elif self._doing is _Doing.STEP:
            self._stepped()
        elif self._doing is _Doing.PUBLISHING:
            self._handed_over()
        elif self._doing is _Doing.WAKING and self._setup.wake_seconds < self._setup.max_wait_seconds:
            self._doing, self._left = _Doing.WAITING, self._setup.max_wait_seconds - self._setup.wake_seconds
        else:
            self._stored += 1
            self._take_step()

    def _speeds(self) -> tuple[float, float]:
        """(of service time, of what the learner does), to the wall's time."""
        asleep = self._setup.colocated and self._doing is not _Doing.WAITING
        works = self._doing in (_Doing.STEP, _Doing.PUBLISHING)
        shared = 1.0
        if self._setup.cores is not None:
            active = (0 if asleep else self._engines.working) + works
            shared = min(1.0, self._setup.cores / max(1, active))
        return 0.0 if asleep else shared, shared if works else 1.0

    def _advance(self, seconds: float, engines_speed: float, learner_speed: float) -> None:
        self._now += seconds
        self._left = max(0.0, self._left - seconds * learner_speed)
        self._seconds[self._doing] += seconds
        if engines_speed:
            self._engines.now += seconds * engines_speed
            for name, working in self._engines.working_by_pool():
                self._busy[name] += seconds * working

    def _approach(self) -> None:
        """The learner has come to its next iteration."""
        setup = self._setup
        if self._iteration > setup.iterations:
            self._doing = _Doing.DONE
        elif self._iteration not in self._online:
            self._take_step()
        elif self._producer.delivered >= self._iteration:
            self._learn_fresh()
        elif setup.colocated:
            self._doing, self._left = _Doing.WAKING, min(setup.wake_seconds, setup.max_wait_seconds)
        else:
            self._doing, self._left = _Doing.WAITING, setup.max_wait_seconds

    def _delivered(self) -> None:
        if self._doing is _Doing.WAITING and self._producer.delivered >= self._iteration:
            self._learn_fresh()
        self._producer.begin(self._published, self._passed)

    def _learn_fresh(self) -> None:
        self._ages.append(self._iteration - 1 - version_for(self._iteration, self._setup.max_staleness))
        self._take_step()

    def _take_step(self) -> None:
        self._passed = self._iteration
        self._doing, self._left = _Doing.STEP, self._setup.learner_seconds

    def _stepped(self) -> None:
        self._iteration += 1
        if self._iteration - 1 in self._to_publish:
            self._doing, self._left = _Doing.PUBLISHING, self._setup.publish_seconds
        else:
            self._approach()

    def _handed_over(self) -> None:
        self._published = self._iteration - 1
        self._producer.begin(self._published, self._passed)
        self._approach()
