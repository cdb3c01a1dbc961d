"""The replicas of all pools at work: calls that run on one replica at the same time share its speed.

Time in this module is service time: seconds of a replica that has a core or a device of its own. Where cores are shared
it passes more slowly than the wall's, and it stands still while the engines sleep.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from heapq import heappop, heappush

from masters_ray.simulation.setup import STUDENT, Pool


class _Replica:
    """Processor sharing: of k running calls each gets on at 1/k."""

    __slots__ = ("_at", "_served", "calls", "index", "loading", "patient", "pool", "stamp", "taken", "version")

    def __init__(self, pool: _Pool, index: int) -> None:
        self.pool = pool
        self.index = index
        self.taken = 0
        """Places of calls under way, those that wait for weights included."""
        self.calls: list[tuple[float, int, int]] = []
        """Heap of what runs: (value of ``_served`` at which it ends, order of asking, batch)."""
        self.loading = False
        """What runs is the loading of weights."""
        self.patient: list[tuple[float, int, int]] = []
        """Calls (seconds, order of asking, batch) that start when the weights are loaded."""
        self.version = 0
        self.stamp = 0
        """Of the only entry about this replica that counts in the heap of coming ends."""
        self._served = 0.0
        """Service that each call would have had if it ran since the replica was last idle."""
        self._at = 0.0
        """Service time up to which ``_served`` is right."""

    def add(self, now: float, seconds: float, order: int, batch: int) -> None:
        self._served = self._served + (now - self._at) / len(self.calls) if self.calls else 0.0
        self._at = now
        heappush(self.calls, (self._served + seconds, order, batch))

    def next_end(self) -> float:
        return self._at + (self.calls[0][0] - self._served) * len(self.calls)

    def end(self, now: float) -> int:
        """The batch whose call ends now."""
        self._served, _, batch = heappop(self.calls)
        self._at = now
        return batch


class _Pool:
    def __init__(self, name: str, pool: Pool) -> None:
        self.name = name
        self.calls_at_once = pool.calls_at_once
        self.replicas = [_Replica(self, index) for index in range(pool.replicas)]
        self.queue: deque[tuple[float, int, int]] = deque()
        """Calls (seconds, order of asking, batch) without a place."""
        self.free = [(1 << pool.replicas) - 1] + [0] * (pool.calls_at_once - 1)
        """By taken places: the replicas with so many, as bits of a whole number."""
        self.working = 0
        """Replicas with something that runs."""

    def least_busy(self) -> _Replica | None:
        """A replica with a free place, the first of those with the fewest calls."""
        for replicas in self.free:
            if replicas:
                return self.replicas[(replicas & -replicas).bit_length() - 1]
        return None

    def take(self, replica: _Replica, places: int) -> None:
        """So many more places of this replica are taken."""
        if replica.taken < self.calls_at_once:
            self.free[replica.taken] ^= 1 << replica.index
        replica.taken += places
        if replica.taken < self.calls_at_once:
            self.free[replica.taken] ^= 1 << replica.index


class Engines:
    """Pools that are asked for calls of batches and tell when they end."""

    def __init__(self, pools: Mapping[str, Pool], load_seconds: float) -> None:
        self.now = 0.0
        """Service time."""
        self._pools = {name: _Pool(name, pool) for name, pool in pools.items()}
        self._load_seconds = load_seconds
        self._version = 0
        self._ends: list[tuple[float, int, _Replica, int]] = []
        """Heap of (service time, order, replica, stamp); an entry counts if it has the replica's stamp."""
        self._order = 0
        self.working = 0
        """Replicas of all pools with something that runs."""

    def working_by_pool(self) -> list[tuple[str, int]]:
        """Replicas with something that runs."""
        return [(name, pool.working) for name, pool in self._pools.items()]

    def expect(self, version: int) -> None:
        """From now on calls of the student need these weights; none may be under way."""
        self._version = version

    def ask(self, name: str, seconds: float, batch: int) -> None:
        """A call for ``batch`` on the pool ``name``; it waits for a place, first come, first served."""
        self._order += 1
        pool, call = self._pools[name], (seconds, self._order, batch)
        replica = pool.least_busy()
        if replica is None:
            pool.queue.append(call)
        else:
            self._place(replica, call)

    def next_end(self) -> float | None:
        """Service time at which the next call ends or weights are loaded; None while nothing runs."""
        while self._ends:
            at, _, replica, stamp = self._ends[0]
            if replica.stamp == stamp:
                return at
            heappop(self._ends)
        return None

    def end_next(self) -> int | None:
        """Go to the next end. Returns the batch whose call ended, or None if weights were loaded. Raises RuntimeError
        when nothing runs."""
        at = self.next_end()
        if at is None:
            raise RuntimeError("no call is under way")
        replica = heappop(self._ends)[2]
        self.now = at
        batch = replica.end(at)
        if replica.loading:
            replica.loading = False
            for seconds, order, waiting in replica.patient:
                replica.add(at, seconds, order, waiting)
            replica.patient = []
            self._schedule(replica)
            return None
        pool = replica.pool
        pool.take(replica, -1)
        if not replica.calls:
            pool.working -= 1
            self.working -= 1
        if pool.queue:
            self._place(replica, pool.queue.popleft())
        else:
            self._schedule(replica)
        return batch

    def _place(self, replica: _Replica, call: tuple[float, int, int]) -> None:
        pool = replica.pool
        pool.take(replica, 1)
        if replica.loading:
            replica.patient.append(call)
            return
        if not replica.calls:
            pool.working += 1
            self.working += 1
        if pool.name == STUDENT and replica.version != self._version:
            replica.version = self._version
            replica.loading = True
            replica.patient.append(call)
            replica.add(self.now, self._load_seconds, *call[1:])
        else:
            replica.add(self.now, *call)
        self._schedule(replica)

    def _schedule(self, replica: _Replica) -> None:
        replica.stamp += 1
        if replica.calls:
            self._order += 1
            heappush(self._ends, (replica.next_end(), self._order, replica, replica.stamp))
