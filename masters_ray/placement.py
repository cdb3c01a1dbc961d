"""Whether a cluster's nodes hold what a run asks for. A process lies on one node, whatever all nodes have together."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from masters_ray.config import Config, Student, Teacher, Transfer
from masters_ray.errors import Complaint, ConfigError

_INEXACT = 1e-9
"""Amounts are sums of fractions such as 0.1."""

Nodes = Sequence[Mapping[str, float]]
"""What each node has in all: "CPU" and "GPU"; what it has not may be left out."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """Processes that reserve the same."""

    count: int
    counted_by: str
    """Keys of the configuration that say how many."""
    cpus: float
    """Of one process, as gpus."""
    cpus_by: str
    gpus: float
    gpus_by: str
    on_one_node: str
    """Why its GPUs lie on one node."""

    def fit(self, cpus: float, gpus: float) -> int:
        """How many of them so many CPUs and GPUs of one node hold; no more than are wanted."""
        most = float(self.count)
        for there, asked in ((cpus, self.cpus), (gpus, self.gpus)):
            if asked > 0:
                most = min(most, (there + _INEXACT) // asked)
        return int(most)


@dataclass(frozen=True, kw_only=True)
class Turns:
    """The node on which the learner and the rollouts of online iterations take turns."""

    cpus: float
    gpus: int

    def __str__(self) -> str:
        """Example: ``one node of 8 CPUs and 1 GPU``."""
        gpus = f" and {self.gpus} GPU{'s' if self.gpus > 1 else ''}" if self.gpus else ""
        return f"one node of {self.cpus:g} CPU{'' if self.cpus == 1 else 's'}{gpus}"


def decide(config: Config, nodes: Nodes, learns: bool = True) -> tuple[Turns | None, list[Complaint]]:
    """How a run is placed, None unless learner and rollouts take turns; and everything that it asks for at one time and
    these nodes do not hold, which is empty when it can be placed.

    Replicas that may join later (max_replicas) do not count: nothing waits for them. learns: false for what makes
    rollouts only.
    """
    if not learns:
        offline = dataclasses.replace(config, rollout=dataclasses.replace(config.rollout, online_fraction=0.0))
        return None, _not_held(_phases(offline)[0], nodes)
    making, alone = _phases(config)
    if config.rollout.online_fraction == 0:
        return None, _not_held(alone, nodes)
    learner = alone[_LEARNER]
    beside = {
        f"learning {doing.replace('making', 'while making')}": [*learner, *kinds] for doing, kinds in making.items()
    }
    wanted = config.rollout.placement
    if wanted != "turns":
        found = _not_held(beside | alone, nodes)
        if not found or wanted == "beside" or len(nodes) != 1:
            return None, found
    elif len(nodes) != 1:
        return None, [_several_nodes(nodes)]
    [node] = nodes
    turns = Turns(cpus=node.get("CPU", 0.0), gpus=int(node.get("GPU", 0.0)))
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


def _several_nodes(nodes: Nodes) -> Complaint:
    return Complaint(
        where="rollout.placement",
        expected="auto or beside on a cluster of several nodes: turns are taken on one node",
        found=f"turns, and {len(nodes)} nodes",
        remedy="Set it, or use a cluster of one node.",
    )


_LEARNER = "the learner"

_Phases = dict[str, list[Kind]]
"""What is done → the processes that run at the same time, the last kind placed last."""


def _phases(config: Config) -> tuple[_Phases, _Phases]:
    """(making rollouts, with each teacher; everything that is done by itself, those too)."""
    student, judge, learner = config.student, config.judge, config.learner
    judges = judge.replicas if "student" in config.judges else 0
    online = config.rollout.online_fraction > 0
    if config.rollout.student_refresh == "stage" or online:
        together = student.replicas + judge.replicas
    else:
        together = max(student.replicas, judges) if judge.share_process else student.replicas + judges
    measuring = student.replicas + (judge.replicas if config.evaluation.marked_by == "judge" else 0)
    students = "student.replicas with judge.replicas"
    workers = Kind(
        count=learner.workers,
        counted_by="learner.workers",
        cpus=learner.cpus,
        cpus_by="learner.cpus",
        gpus=learner.gpus,
        gpus_by="learner.gpus",
        on_one_node="a worker lies on one node",
    )
    making = {
        f"making rollouts{with_teacher}": [_teachers(config, number), _replicas("student", student, together, students)]
        for number, with_teacher in enumerate(
            ["", *(f" with growth[{number}].teacher" for number in range(len(config.growth)))]
        )
    }
    return making, making | {
        "measuring the trained student": [_replicas("student", student, measuring, students)],
        _LEARNER: [workers],
    }


def _not_held(phases: _Phases, nodes: Nodes) -> list[Complaint]:
    """What these nodes do not hold of phases that follow one another."""
    found: dict[str, Complaint] = {}
    for doing, kinds in phases.items():
        learns = any(kind.counted_by == "learner.workers" for kind in kinds)
        told = [one for kind in kinds for one in too_large(kind, nodes)]
        # One CPU more: the dataset is read by tasks beside the workers.
        told += _sums(doing, kinds, nodes, 1.0 if learns else 0.0)
        for complaint in told or crowded(doing, kinds, nodes):
            found.setdefault(complaint.where, complaint)
    return list(found.values())


def _teachers(config: Config, number: int) -> Kind:
    """The replicas of one of the run's teachers, with those that judge."""
    name = "teacher" if number == 0 else f"growth[{number - 1}].teacher"
    teacher, counted_by = config.of_teacher(number).teacher, f"{name}.replicas"
    if "teacher" in config.judges:
        return _replicas(name, teacher, teacher.replicas + config.judge.replicas, f"{counted_by} with judge.replicas")
    return _replicas(name, teacher, teacher.replicas, counted_by)


def too_large(kind: Kind, nodes: Nodes) -> list[Complaint]:
    """Empty when at least one node holds one process of this kind."""
    found = []
    for name, key, asked, why in (
        ("CPU", kind.cpus_by, kind.cpus, "a process lies on one node"),
        ("GPU", kind.gpus_by, kind.gpus, kind.on_one_node),
    ):
        most = max((node.get(name, 0.0) for node in nodes), default=0.0)
        if asked > most + _INEXACT:
            found.append(
                Complaint(
                    where=key,
                    expected=f"at most {most:g}, the most {name}s of one node: {why}",
                    found=f"{asked:g}",
                    remedy=f"Lower it, or use nodes with more {name}s.",
                )
            )
    if not found and not any(kind.fit(node.get("CPU", 0.0), node.get("GPU", 0.0)) for node in nodes):
        found.append(
            Complaint(
                where=f"{kind.cpus_by} with {kind.gpus_by}",
                expected="a node that has both",
                found=f"{kind.cpus:g} CPUs with {kind.gpus:g} GPUs, which no node has",
                remedy=f"Lower {kind.cpus_by}.",
            )
        )
    return found


def crowded(doing: str, kinds: Sequence[Kind], nodes: Nodes) -> list[Complaint]:
    """Empty when the nodes hold these kinds of processes beside each other, each process on one node."""
    *others, last = kinds
    held = _held(others, last, nodes)
    if held.get(tuple(kind.count for kind in others), -1) >= last.count:
        return []
    # As many of the first kinds as there may be with at least one of the last.
    best = max((counts for counts, most in held.items() if most), default=tuple(0 for _ in others))
    room = ("for instance " if others else "at most ") + " with ".join(map(str, (*best, held[best])))
    return [
        Complaint(
            where=f"{' beside '.join(kind.counted_by for kind in kinds)} for {doing}",
            expected=f"{room}, counted node by node: a process lies on one node",
            found=" with ".join(str(kind.count) for kind in kinds),
            remedy="Choose replicas or workers that fill a node without a rest, lower them, or use more nodes.",
        )
    ]


def _held(others: Sequence[Kind], last: Kind, nodes: Nodes) -> dict[tuple[int, ...], int]:
    """Numbers of the other kinds' processes → the most of the last kind that the nodes hold beside them."""
    held = {tuple(0 for _ in others): 0}
    for node in nodes:
        here = list(_on_one_node(others, last, node.get("CPU", 0.0), node.get("GPU", 0.0)))
        grown: dict[tuple[int, ...], int] = {}
        for counts, beside in held.items():
            for more, more_beside in here:
                whole = tuple(
                    min(kind.count, count + one) for kind, count, one in zip(others, counts, more, strict=True)
                )
                grown[whole] = max(grown.get(whole, 0), beside + more_beside)
        held = grown
    return held


def _on_one_node(others: Sequence[Kind], last: Kind, cpus: float, gpus: float) -> Iterator[tuple[tuple[int, ...], int]]:
    """Every number of the other kinds' processes that so many CPUs and GPUs hold, and how many of the last beside."""
    if not others:
        yield (), last.fit(cpus, gpus)
        return
    first, *rest = others
    for count in range(first.fit(cpus, gpus) + 1):
        for counts, beside in _on_one_node(rest, last, cpus - count * first.cpus, gpus - count * first.gpus):
            yield (count, *counts), beside


def _sums(doing: str, kinds: Sequence[Kind], nodes: Nodes, more_cpus: float) -> list[Complaint]:
    asked = {
        "CPU": sum(kind.count * kind.cpus for kind in kinds) + more_cpus,
        "GPU": sum(kind.count * kind.gpus for kind in kinds),
    }
    there = {name: sum(node.get(name, 0.0) for node in nodes) for name in asked}
    return [
        Complaint(
            where=f"{name} for {doing}",
            expected=f"at most the cluster's {there[name]:g}",
            found=f"{amount:g}",
            remedy="Lower replicas or workers or what each reserves, or use a larger cluster.",
        )
        for name, amount in asked.items()
        if amount > there[name] + _INEXACT
    ]


def _replicas(name: str, role: Teacher | Student, count: int, counted_by: str) -> Kind:
    return Kind(
        count=count,
        counted_by=counted_by,
        cpus=role.cpus,
        cpus_by=f"{name}.cpus",
        gpus=role.gpus * role.tensor_parallel,
        gpus_by=f"{name}.gpus x {name}.tensor_parallel",
        on_one_node="a replica's ranks share a node",
    )
