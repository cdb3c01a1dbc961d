"""Whether a cluster's nodes hold what a run asks for. A process lies on one node, whatever all nodes have together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from masters_ray.config import Config, Student, Teacher
from masters_ray.errors import Complaint

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


def complaints(config: Config, nodes: Nodes) -> list[Complaint]:
    """Everything that a run asks for at one time and these nodes do not hold.

    Replicas that may join later (max_replicas) do not count: nothing waits for them.
    """
    student, judge, learner = config.student, config.judge, config.learner
    judges = judge.replicas if "student" in config.judges else 0
    if config.rollout.student_refresh == "stage":
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
    phases = making | {
        "measuring the trained student": [_replicas("student", student, measuring, students)],
        "the learner": [workers],
    }
    # One CPU more: the dataset is read by tasks beside the workers.
    beside = {"the learner": 1.0}
    found: dict[str, Complaint] = {}
    for doing, kinds in phases.items():
        told = [one for kind in kinds for one in too_large(kind, nodes)]
        told += _sums(doing, kinds, nodes, beside.get(doing, 0.0))
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
    """Empty when the nodes hold one or two kinds of processes beside each other, each process on one node."""
    first, *others = kinds
    second = others[0] if others else None
    held = _held(first, second, nodes)
    if held.get(first.count, -1) >= (second.count if second else 0):
        return []
    if second is None:
        room, keys, wanted = f"at most {max(held)}", first.counted_by, f"{first.count}"
    else:
        # As many of the first kind as there may be with at least one of the second.
        alone = max((count for count, more in held.items() if more), default=0)
        room = f"for instance {alone} with {held[alone]}"
        keys, wanted = f"{first.counted_by} beside {second.counted_by}", f"{first.count} with {second.count}"
    return [
        Complaint(
            where=f"{keys} for {doing}",
            expected=f"{room}, counted node by node: a process lies on one node",
            found=wanted,
            remedy="Choose replicas or workers that fill a node without a rest, lower them, or use more nodes.",
        )
    ]


def _held(first: Kind, second: Kind | None, nodes: Nodes) -> dict[int, int]:
    """Number of the first kind's processes → the most of the second kind that the nodes hold beside them."""
    held = {0: 0}
    for node in nodes:
        cpus, gpus = node.get("CPU", 0.0), node.get("GPU", 0.0)
        here = [
            (count, second.fit(cpus - count * first.cpus, gpus - count * first.gpus) if second else 0)
            for count in range(first.fit(cpus, gpus) + 1)
        ]
        grown: dict[int, int] = {}
        for count, beside in held.items():
            for more, more_beside in here:
                whole = min(first.count, count + more)
                grown[whole] = max(grown.get(whole, 0), beside + more_beside)
        held = grown
    return held


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
