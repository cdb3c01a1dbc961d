"""Whether a cluster's nodes hold what a run asks for. A process lies on one node, whatever all nodes have together."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from masters_ray.config import Config, Transfer
from masters_ray.errors import Complaint, ConfigError
from masters_ray.progress import say
from masters_ray.replicas import processes
from masters_ray.replicas.processes import Processes

_INEXACT = 1e-9
"""Amounts are sums of fractions such as 0.1."""

Nodes = Sequence[Mapping[str, float]]
"""What each node has in all: "CPU" and "GPU"; what it has not may be left out."""

_Phases = dict[str, list[Processes]]
"""What is done → the processes that run at the same time."""


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
    """Where learner and rollouts of online iterations take turns; None when they need not. learns: false for commands
    that make rollouts only; grows: the cluster may get other nodes. Raises ConfigError when these nodes are too few or
    too small for what is asked for at one time and it does not grow, or when weights cannot go the way that conf says.
    """
    turns, complaints = decide(config, nodes, learns)
    if complaints and not grows:
        raise ConfigError(complaints)
    for one in complaints:
        say(f"the cluster has to grow, which is waited for: {one.where} is {one.found}, its nodes hold {one.expected}")
    if learns:
        transfer(config, turns)
    return turns


def decide(config: Config, nodes: Nodes, learns: bool = True) -> tuple[Turns | None, list[Complaint]]:
    """How a run is placed, as ``place``; and what it asks for at one time and these nodes do not hold. Replicas that
    may join later (max_replicas) do not count: nothing waits for them."""
    online = learns and config.rollout.online_fraction > 0
    making = {
        "making rollouts" + (f" with {key}" if number else ""): processes.making(
            config, number, learned=online or config.rollout.student_refresh == "stage"
        )
        for number, key in enumerate(list(config.models)[:-1])
    }
    if not learns:
        return None, _not_held(making, nodes)
    workers = [processes.learning(config.learner)]
    alone = making | {"measuring the trained student": processes.measuring(config), "the learner": workers}
    wanted = config.rollout.placement
    if not online:
        return None, _not_held(alone, nodes)
    if wanted != "turns":
        beside = {f"learning while {doing}": [*workers, *replicas] for doing, replicas in making.items()}
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
    """How the learner's weights reach the student's engines, if there are online iterations. turns: where both take
    turns. Raises ConfigError when conf has a way that does not fit."""
    if config.rollout.online_fraction == 0:
        return "object_store"
    wanted = config.rollout.weight_transfer
    fits = turns is None and config.learner.gpus == config.student.gpus == 1
    if wanted == "auto":
        return "nccl" if fits else "object_store"
    if wanted == "nccl" and not fits:
        complaint = Complaint(
            where="rollout.weight_transfer",
            expected="nccl only where learner and student have GPUs of their own",
            found=f"nccl, and they take turns on {turns}",
            remedy="auto takes what fits.",
        )
        raise ConfigError([complaint])
    return wanted


def _not_held(phases: _Phases, nodes: Nodes) -> list[Complaint]:
    """What these nodes do not hold of phases that follow one another, each key once."""
    found: dict[str, Complaint] = {}
    for doing, asked in phases.items():
        kinds = _merged(asked)
        told = [*itertools.chain(*(_too_large(kind, nodes) for kind in kinds)), *_sums(doing, kinds, nodes)]
        for complaint in told or crowded(doing, kinds, nodes):
            found.setdefault(complaint.where, complaint)
    return list(found.values())


def _merged(asked: Sequence[Processes]) -> list[Processes]:
    """Those of one model as one kind: for the room that they take it is all the same what they do."""
    kinds: dict[str, Processes] = {}
    for one in asked:
        so_far = kinds.get(one.key, dataclasses.replace(one, roles=(), count=0))
        kinds[one.key] = dataclasses.replace(one, roles=so_far.roles + one.roles, count=so_far.count + one.count)
    return list(kinds.values())


def _keys(kind: Processes) -> tuple[str, str, str]:
    """The keys that decide the number of processes, their CPUs, their GPUs."""
    if kind.key == "learner":
        return "learner.workers", "learner.cpus", "learner.gpus"
    judges = {"judge", "reference", "teacher_judge"} & set(kind.roles)
    count = f"{kind.key}.replicas" + (" with judge.replicas" if judges else "")
    return count, f"{kind.key}.cpus", f"{kind.key}.gpus x {kind.key}.tensor_parallel"


def _too_large(kind: Processes, nodes: Nodes) -> Iterator[Complaint]:
    """Nothing when at least one node holds one process of this kind."""
    _, by_cpus, by_gpus = _keys(kind)
    fits = True
    for name, key, asked in (("CPU", by_cpus, kind.cpus), ("GPU", by_gpus, kind.gpus)):
        most = max((node.get(name, 0.0) for node in nodes), default=0.0)
        if asked > most + _INEXACT:
            fits = False
            expected = f"at most {most:g}, the most {name}s of one node: a process lies on one node with all its ranks"
            yield Complaint(key, expected, f"{asked:g}", f"Lower it, or use nodes with more {name}s.")
    if fits and not any(fit(kind, node.get("CPU", 0.0), node.get("GPU", 0.0)) for node in nodes):
        found = f"{kind.cpus:g} CPUs with {kind.gpus:g} GPUs, which no node has"
        yield Complaint(f"{by_cpus} with {by_gpus}", "a node that has both", found, f"Lower {by_cpus}.")


def _sums(doing: str, kinds: Sequence[Processes], nodes: Nodes) -> Iterator[Complaint]:
    """Nothing when all nodes together have what is asked for."""
    # One CPU more where the student learns: the dataset is read by tasks beside the workers.
    cpus = float(any(kind.key == "learner" for kind in kinds)) + sum(kind.count * kind.cpus for kind in kinds)
    for name, asked in (("CPU", cpus), ("GPU", sum(kind.count * kind.gpus for kind in kinds))):
        there = sum(node.get(name, 0.0) for node in nodes)
        if asked > there + _INEXACT:
            remedy = "Lower replicas or workers or what each reserves, or use a larger cluster."
            yield Complaint(f"{name} for {doing}", f"at most the cluster's {there:g}", f"{asked:g}", remedy)


def crowded(doing: str, kinds: Sequence[Processes], nodes: Nodes) -> list[Complaint]:
    """Empty when the nodes hold these kinds of processes beside each other, each process on one node."""
    *others, last = kinds
    held = _held(kinds, nodes)
    if held.get(tuple(kind.count for kind in others), -1) >= last.count:
        return []
    # As many of the first kinds as there may be with at least one of the last.
    best = max((counts for counts, most in held.items() if most), default=tuple(0 for _ in others))
    room = ("for instance " if others else "at most ") + " with ".join(map(str, (*best, held[best])))
    return [
        Complaint(
            where=f"{' beside '.join(_keys(kind)[0] for kind in kinds)} for {doing}",
            expected=f"{room}, counted node by node: a process lies on one node",
            found=" with ".join(str(kind.count) for kind in kinds),
            remedy="Choose replicas or workers that fill a node without a rest, lower them, or use more nodes.",
        )
    ]


def _held(kinds: Sequence[Processes], nodes: Nodes) -> dict[tuple[int, ...], int]:
    """Numbers of processes of all kinds but the last → the most of the last that the nodes hold beside them."""
    held = {(0,) * (len(kinds) - 1): 0}
    for node in nodes:
        here = list(_on_one_node(kinds, node.get("CPU", 0.0), node.get("GPU", 0.0)))
        grown: dict[tuple[int, ...], int] = {}
        for (before, most), (*more, last) in itertools.product(held.items(), here):
            counts = tuple(min(kind.count, a + b) for kind, a, b in zip(kinds, before, more, strict=False))
            grown[counts] = max(grown.get(counts, 0), most + last)
        held = grown
    return held


def _on_one_node(kinds: Sequence[Processes], cpus: float, gpus: float) -> Iterator[tuple[int, ...]]:
    """Every number of processes of all kinds but the last that so many CPUs and GPUs hold, with the most of the
    last."""
    first, *rest = kinds
    most = fit(first, cpus, gpus)
    if not rest:
        yield (most,)
        return
    for count in range(most + 1):
        for counts in _on_one_node(rest, cpus - count * first.cpus, gpus - count * first.gpus):
            yield (count, *counts)


def fit(kind: Processes, cpus: float, gpus: float) -> int:
    """How many processes so many CPUs and GPUs of one node hold; no more than are wanted."""
    most = float(kind.count)
    for there, asked in ((cpus, kind.cpus), (gpus, kind.gpus)):
        if asked > 0:
            most = min(most, (there + _INEXACT) // asked)
    return int(most)
