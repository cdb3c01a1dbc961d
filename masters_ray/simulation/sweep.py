"""The same run with other shares of online iterations and other numbers of replicas."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from masters_ray.errors import Complaint, ConfigError
from masters_ray.schedule import is_online
from masters_ray.simulation.model import simulate
from masters_ray.simulation.setup import Outcome, Setup


@dataclass(frozen=True, kw_only=True)
class Case:
    """One of the runs that are compared."""

    share: float
    """Of the iterations that are online."""
    replicas: Mapping[str, int]
    """By pool."""
    outcome: Outcome


def spread(iterations: int, share: float) -> tuple[int, ...]:
    """Numbers of the online iterations of a run, as a run itself spreads them (``schedule.is_online``).

    Example: of 10 iterations with 0.2 they are 3 and 8.
    """
    return tuple(number for number in range(1, iterations + 1) if is_online(number, share))


def sweep(base: Setup, shares: Sequence[float], replicas: Sequence[Mapping[str, int]]) -> list[Case]:
    """``base`` with each share and each choice of replicas, the shares outermost.

    replicas: by pool; a pool that is not named keeps those of ``base``. Raises ConfigError when ``base`` has no such
    pool, or a pool has no replica.
    """
    if unknown := sorted({name for choice in replicas for name in choice} - base.pools.keys()):
        known = ", ".join(sorted(base.pools)) or "none"
        raise ConfigError(
            [
                Complaint(
                    where=f"simulation: replicas of {name}",
                    expected="a pool that there is",
                    found=name,
                    remedy=f"Pools: {known}.",
                )
                for name in unknown
            ]
        )
    cases = []
    for share in shares:
        for choice in replicas:
            pools = {
                name: dataclasses.replace(pool, replicas=choice.get(name, pool.replicas))
                for name, pool in base.pools.items()
            }
            setup = dataclasses.replace(base, online=spread(base.iterations, share), pools=pools)
            counts = {name: pool.replicas for name, pool in pools.items()}
            cases.append(Case(share=share, replicas=counts, outcome=simulate(setup)))
    return cases
