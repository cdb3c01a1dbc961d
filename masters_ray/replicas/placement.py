"""Checks whether a cluster's nodes have room for a run's processes; each process with all its ranks needs one node."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from masters_ray.config import Config, Transfer
from masters_ray.errors import Complaint, ConfigError
from masters_ray.progress import say
from masters_ray.replicas import processes
from masters_ray.replicas.processes import Processes

_INEXACT = 1e-9
"""Tolerance for amounts that are sums of fractions such as 0.1."""

Nodes = Sequence[Mapping[str, float]]
"""Total resources of each node: "CPU" and "GPU"; a missing name means 0."""


@dataclass(frozen=True, kw_only=True)
class Turns:
    """The node on which the learner and the rollouts of online iterations take turns."""

    cpus: float
    gpus: int

    def __str__(self) -> str:
        """Example: ``one node of 8 CPUs and 1 GPU``."""
        gpus = f" and {self.gpus} GPU{'s' if self.gpus > 1 else ''}" if self.gpus else ""
        return f"one node of {self.cpus:g} CPU{'' if self.cpus == 1 else 's'}{gpus}"


def place(config: Config, nodes: Nodes, *, learns: bool = True, grows: bool = False) -> Turns | None:
    """Returns the node on which learner and online rollouts take turns; None when they do not. learns: False for
    commands that only make rollouts; grows: the cluster may get more nodes. Raises ConfigError when the nodes have too
    little room for what runs at one time and the cluster does not grow, or when rollout.weight_transfer does not fit.
    """
    turns, complaints = decide(config, nodes, learns)
    if complaints and not grows:
        raise ConfigError(complaints)
    for one in complaints:
        say(f"the cluster has to grow, which is waited for: {one}")
    if learns:
        transfer(config, turns)
    return turns


def decide(config: Config, nodes: Nodes, learns: bool = True) -> tuple[Turns | None, list[Complaint]]:
    """Returns the placement as ``place`` does, and a complaint for each phase that these nodes have no room for.
    Ignores replicas that may join later (max_replicas), since nothing waits for them."""
    online, wanted = learns and config.rollout.online_fraction > 0, config.rollout.placement
    learned = online or config.rollout.student_refresh == "stage"
    making = {
        "making rollouts" + (f" with {key}" if number else ""): processes.for_rollouts(config, number, learned=learned)
        for number, key in enumerate(list(config.models)[:-1])
    }
    if not learns:
        return None, _not_held(making, nodes)
    workers = Processes(key="learner", count=config.learner.workers, cpus=config.learner.cpus, gpus=config.learner.gpus)
    alone = making | {"measuring the trained student": processes.for_measuring(config), "the learner": [workers]}
    if not online:
        return None, _not_held(alone, nodes)
    if wanted != "turns":
        beside = {f"learning while {doing}": [workers, *replicas] for doing, replicas in making.items()}
        complaints = _not_held(beside | alone, nodes)
        if not complaints or wanted == "beside" or len(nodes) != 1:
            return None, complaints
    elif len(nodes) != 1:
        expected = "auto or beside on a cluster of several nodes: turns are taken on one node"
        remedy = "Set it, or use a cluster of one node."
        return None, [Complaint("rollout.placement", expected, f"turns, and {len(nodes)} nodes", remedy)]
    turns = Turns(cpus=nodes[0].get("CPU", 0.0), gpus=int(nodes[0].get("GPU", 0.0)))
    return turns, _not_held(alone, nodes)


def transfer(config: Config, turns: Turns | None) -> Transfer:
    """Returns how the learner's weights reach the student's engines in online iterations. turns: as from ``place``.
    Raises ConfigError when rollout.weight_transfer does not fit the placement."""
    wanted = config.rollout.weight_transfer
    fits = turns is None and config.learner.gpus == config.student.gpus == 1
    if config.rollout.online_fraction == 0:
        return "object_store"
    if wanted == "auto":
        return "nccl" if fits else "object_store"
    if wanted == "nccl" and not fits:
        expected = "nccl only where learner and student have GPUs of their own"
        found = f"nccl, and they take turns on {turns}"
        raise ConfigError([Complaint("rollout.weight_transfer", expected, found, "auto takes what fits.")])
    return wanted


def _not_held(phases: Mapping[str, Sequence[Processes]], nodes: Nodes) -> list[Complaint]:
    """Returns a complaint for each phase that the nodes have no room for. phases: what is done → the processes that run
    at the same time; phases run one after the other."""
    found = []
    for doing, asked in phases.items():
        kinds: dict[str, Processes] = {}  # by model: roles do not change the room that a process needs
        for one in asked:
            so_far = kinds.get(one.key, replace(one, roles=(), count=0))
            kinds[one.key] = replace(one, roles=so_far.roles + one.roles, count=so_far.count + one.count)
        found.append(crowded(doing, list(kinds.values()), nodes))
    return [one for one in found if one is not None]


def crowded(doing: str, kinds: Sequence[Processes], nodes: Nodes) -> Complaint | None:
    """Returns a complaint when the nodes cannot hold all these processes at the same time, each on one node."""
    *others, last = kinds
    held = {(0,) * len(others): 0}
    """Counts of all kinds but the last → most processes of the last kind beside them, on the nodes seen so far."""
    for node in nodes:
        here = list(_on_one_node(kinds, node.get("CPU", 0.0), node.get("GPU", 0.0)))
        grown: dict[tuple[int, ...], int] = {}
        for (before, most), (*more, added) in itertools.product(held.items(), here):
            counts = tuple(min(kind.count, a + b) for kind, a, b in zip(others, before, more, strict=True))
            grown[counts] = max(grown.get(counts, 0), min(last.count, most + added))
        held = grown
    learns = any(kind.key == "learner" for kind in kinds)
    spare = sum(node.get("CPU", 0.0) for node in nodes) - sum(kind.count * kind.cpus for kind in kinds) + _INEXACT
    if held.get(tuple(kind.count for kind in others), -1) >= last.count and spare >= learns:
        return None
    # The most of the first kinds that leave room for one of the last.
    best = max((counts for counts, most in held.items() if most), default=(0,) * len(others))
    room = ("for instance " if others else "at most ") + " with ".join(map(str, (*best, held[best])))
    sizes = [f"{node.get('CPU', 0):g} CPUs and {node.get('GPU', 0):g} GPUs" for node in nodes]
    there = " and ".join(f"{sizes.count(size)} with {size}" for size in dict.fromkeys(sizes))
    reading = ", and reading the data takes one CPU" if learns else ""
    return Complaint(
        where=f"{' beside '.join(_counted_by(kind) for kind in kinds)} for {doing}",
        expected=f"{room} on the nodes ({there}): a process lies on one node with all its ranks{reading}",
        found=" with ".join(f"{kind.count} of {kind.cpus:g} CPUs and {kind.gpus:g} GPUs" for kind in kinds),
        remedy="Lower replicas or workers, or the cpus, gpus or tensor_parallel of each, or use more or larger nodes.",
    )


def _counted_by(kind: Processes) -> str:
    """Returns the key that sets how many processes there are."""
    if kind.key == "learner":
        return "learner.workers"
    judges = {"judge", "reference", "teacher_judge"} & set(kind.roles)
    return f"{kind.key}.replicas" + (" with judge.replicas" if judges else "")


def _on_one_node(kinds: Sequence[Processes], cpus: float, gpus: float) -> Iterator[tuple[int, ...]]:
    """Yields all combinations of counts that fit into these CPUs and GPUs, with the most of the last kind for each."""
    first, *rest = kinds
    most = fit(first, cpus, gpus)
    if not rest:
        yield (most,)
        return
    for count in range(most + 1):
        for counts in _on_one_node(rest, cpus - count * first.cpus, gpus - count * first.gpus):
            yield (count, *counts)


def fit(kind: Processes, cpus: float, gpus: float) -> int:
    """Returns how many processes fit into these CPUs and GPUs of one node, at most ``kind.count``."""
    most = float(kind.count)
    for there, asked in ((cpus, kind.cpus), (gpus, kind.gpus)):
        if asked > 0:
            most = min(most, (there + _INEXACT) // asked)
    return int(most)
