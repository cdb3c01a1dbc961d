"""Checks whether a cluster's nodes have room for a run's processes; each process with all its ranks needs one node."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from masters_ray.config import Config, Transfer
from masters_ray.errors import Complaint, ConfigError
from masters_ray.progress import say
from masters_ray.replicas import processes
from masters_ray.replicas.processes import Processes

_INEXACT = 1e-9  # tolerance for amounts that are sums of fractions such as 0.1

Nodes = Sequence[Mapping[str, float]]  # total resources of each node: "CPU" and "GPU"; a missing name means 0


@dataclass(frozen=True, kw_only=True)
class Turns:
    """Learner and rollouts of online iterations take turns on one node with so many whole GPUs."""

    gpus: int


def place(config: Config, nodes: Nodes, *, learns: bool = True, grows: bool = False) -> Turns | None:
    """Returns how learner and online rollouts take turns; None when they do not. learns: False for commands that only
    make rollouts; grows: the cluster may get more nodes. Raises ConfigError when the nodes have too little room for
    what runs at one time and the cluster does not grow, or when rollout.placement or weight_transfer does not fit."""
    online = learns and config.rollout.online_fraction > 0
    wanted = config.rollout.placement if online else "beside"
    if wanted == "turns" and len(nodes) != 1:
        expected = "auto or beside on a cluster of several nodes: turns are taken on one node"
        found = f"turns, and {len(nodes)} nodes"
        raise ConfigError([Complaint("rollout.placement", expected, found, "Set it, or use one node.")])
    learned = online or config.rollout.student_refresh == "stage"
    making = {
        "making rollouts" + (f" with {key}" if number else ""): processes.for_rollouts(config, number, learned=learned)
        for number, key in enumerate(list(config.models)[:-1])
    }
    workers = Processes(key="learner", count=config.learner.workers, cpus=config.learner.cpus, gpus=config.learner.gpus)
    after = {"measuring the trained student": processes.for_measuring(config), "learning": [workers]}
    alone = making | after if learns else making
    beside = {f"learning while {doing}": [workers, *replicas] for doing, replicas in making.items()} if online else {}
    turns, complaints = None, _without_room(beside | alone, nodes)
    if wanted == "turns" or (wanted == "auto" and complaints and len(nodes) == 1):
        turns = Turns(gpus=int(nodes[0].get("GPU", 0.0)))
        complaints = _without_room(alone, nodes)
    if complaints and not grows:
        raise ConfigError(complaints)
    for one in complaints:
        say(f"the cluster has to grow, which is waited for: {one}")
    if learns:
        transfer(config, turns)
    return turns


def transfer(config: Config, turns: Turns | None) -> Transfer:
    """Returns how the learner's weights reach the student's engines in online iterations. turns: as from ``place``.
    Raises ConfigError when rollout.weight_transfer does not fit the placement."""
    wanted = config.rollout.weight_transfer
    fits = turns is None and config.learner.gpus == config.student.gpus == 1
    if config.rollout.online_fraction == 0:
        return "object_store"
    if wanted == "nccl" and not fits:
        expected, found = "nccl only where learner and student have GPUs of their own", "nccl, and they take turns"
        raise ConfigError([Complaint("rollout.weight_transfer", expected, found, "auto takes what fits.")])
    return wanted if wanted != "auto" else "nccl" if fits else "object_store"


def _without_room(phases: Mapping[str, Sequence[Processes]], nodes: Nodes) -> list[Complaint]:
    """Returns a complaint for each phase without room. phases: what is done → the processes that run at one time."""
    found = []
    sizes = Counter(f"{node.get('CPU', 0):g} CPUs and {node.get('GPU', 0):g} GPUs" for node in nodes)
    there = " and ".join(f"{count} with {size}" for size, count in sizes.items())
    for doing, asked in phases.items():
        kinds: dict[str, Processes] = {}  # by model: roles do not change the room that a process needs
        for one in asked:
            kinds[one.key] = replace(one, count=one.count + (kinds[one.key].count if one.key in kinds else 0))
        learns = "learner" in kinds
        spare = sum(node.get("CPU", 0.0) for node in nodes) - sum(one.count * one.cpus for one in asked) + _INEXACT
        if spare < learns or not fit(list(kinds.values()), nodes):
            reading = ", and reading the data takes one CPU" if learns else ""
            expected = f"room on the nodes ({there}): a process lies on one node with all its ranks{reading}"
            needs = [f"{one.count} of {one.cpus:g} CPUs and {one.gpus:g} GPUs" for one in kinds.values()]
            remedy = "Lower replicas (the judge's too) or workers, or what each takes, or use more or larger nodes."
            found.append(Complaint(f"{' beside '.join(kinds)} for {doing}", expected, " with ".join(needs), remedy))
    return found


def fit(kinds: Sequence[Processes], nodes: Nodes) -> bool:
    """Returns whether the nodes hold all these processes at the same time, each process on one node."""
    held = {(0,) * (len(kinds) - 1): 0}
    """Counts of all kinds but the last → most processes of the last kind beside them, on the nodes seen so far."""
    for node in nodes:
        grown: dict[tuple[int, ...], int] = {}
        for *more, added in _on_one_node(kinds, node.get("CPU", 0.0), node.get("GPU", 0.0)):
            for before, most in held.items():
                counts = tuple(min(kind.count, a + b) for kind, a, b in zip(kinds, before, more, strict=False))
                grown[counts] = max(grown.get(counts, 0), most + added)
        held = grown
    return held.get(tuple(kind.count for kind in kinds[:-1]), -1) >= kinds[-1].count


def _on_one_node(kinds: Sequence[Processes], cpus: float, gpus: float) -> Iterator[tuple[int, ...]]:
    """Yields all counts that fit into these CPUs and GPUs, with the most of the last kind beside the others."""
    first, *rest = kinds
    room = [(there + _INEXACT) // asked for there, asked in ((cpus, first.cpus), (gpus, first.gpus)) if asked > 0]
    most = int(min([first.count, *room]))
    if not rest:
        yield (most,)
        return
    for count in range(most + 1):
        for others in _on_one_node(rest, cpus - count * first.cpus, gpus - count * first.gpus):
            yield (count, *others)
