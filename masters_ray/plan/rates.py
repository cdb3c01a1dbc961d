"""What a run's parts take, measured or given by hand (``rates.json``), and how long groups are made at such rates."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from pathlib import Path
from statistics import median
from typing import Annotated, ClassVar

from pydantic import ConfigDict, Field

from masters_ray import config as configuration
from masters_ray.config import Config
from masters_ray.errors import StoreError
from masters_ray.files import read_object, read_record, read_records
from masters_ray.records import OnlineStep, StepMetrics

_BY_HAND = "Mend the file; the fields of Rates in masters_ray/plan/rates.py are its keys."
_ANEW = "Name a run with rollout.online_fraction above 0, or a rates.json (--rates)."

_Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False, strict=True)]
_Role = Annotated[str, Field(pattern="^(teacher|student|judge|reference)$")]


@dataclass(frozen=True, kw_only=True)
class GroupMaking:
    """How questions become groups."""

    rounds: Sequence[Mapping[str, float]]
    """What a batch goes through: calls made at once, as pool → seconds for each question."""
    replicas: Mapping[str, int]
    """By pool, named as the section of the configuration that counts them. Those of the student take over the learner's
    weights; those of the judge keep the weights before training and are the reference policy, too."""
    batch_rows: int
    """Questions of a batch; the last may have fewer."""

    def seconds(self, questions: int) -> float:
        """Until the last group is made. Replicas take calls in the order in which they come, one after the other, as
        an engine admits the sequences of several calls.

        Example: two batches, whose answers take 3 s and whose verdicts 1 s, on one replica of each pool are made in
        3 + 3 + 1 s: the first is judged while the second is answered.
        """
        free = {pool: [0.0] * count for pool, count in self.replicas.items()}
        todo = [(0.0, first, 0) for first in range(0, questions, self.batch_rows)]
        last = 0.0
        while todo:
            ready, first, number = heappop(todo)
            ends = []
            for pool, seconds in self.rounds[number].items():
                begun = max(ready, heappop(free[pool]))
                ends.append(begun + seconds * min(self.batch_rows, questions - first))
                heappush(free[pool], ends[-1])
            last = max(last, *ends)
            if number + 1 < len(self.rounds):
                heappush(todo, (max(ends), first, number + 1))
        return last


def group_making(config: Config, calls: Mapping[str, Mapping[str, float]], *, online: bool) -> GroupMaking:
    """Of online iterations, or of the stages before learning, where the student that writes is the reference policy as
    well and is called once for both. calls: as ``Rates.calls``."""
    judge = config.judge
    roles = {"reference": "judge" if online else "student"}
    if judge.follows_student if online else judge.share_process:
        roles["judge"] = "student"
    rounds: list[dict[str, float]] = [{} for _ in calls]
    for pools, costs in zip(rounds, calls.values(), strict=True):
        for role, seconds in costs.items():
            pool = roles.get(role, role)
            pools[pool] = max(seconds, pools.get(pool, 0.0))
    replicas = {"teacher": config.teacher.replicas, "student": config.student.replicas, "judge": judge.replicas}
    return GroupMaking(rounds=rounds, replicas=replicas, batch_rows=config.rollout.batch_rows)


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Costs of a run's parts; a ``rates.json`` has these names as keys."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    learner_seconds: Annotated[float, Field(gt=0, allow_inf_nan=False, strict=True)]
    """Median of an optimizer step, without waiting."""
    publish_seconds: _Seconds
    """That the learner spends on handing out a version of its weights: median over the versions."""
    load_seconds: _Seconds
    """Until all replicas of the student hold a version: median over the versions."""
    start_seconds: _Seconds | None
    """What the learner's phase takes beside steps, waiting and publishing; None: not known, it still lasts."""
    calls: Annotated[dict[str, Annotated[dict[_Role, _Seconds], Field(min_length=1)]], Field(min_length=1)]
    """Method, in the order in which a batch goes through them → seconds of a replica for each question, by the role
    that is called; a method's roles are called at once. Example: ``{"answer": {"teacher": 0.25, "student": 0.1}}``."""

    @classmethod
    def load(cls, path: Path) -> Rates:
        """Of a rates.json, or as ``measured``. Raises StoreError, which names file and key."""
        if path.suffix != ".json":
            return measured(path)
        return read_record(path, cls, _BY_HAND)


def measured(run_dir: Path) -> Rates:
    """The rates of a run that has ended or goes on. Raises StoreError, which names file and remedy, when something is
    missing, no iteration was online, or there is no step but the first, which warms up and does not count.

    A call's seconds are the wall's while it was under way, so calls that shared its replica are in them. One factor for
    all calls takes these out: with it ``GroupMaking`` needs what iterations took. What shared cores cost stays.
    """
    # A step that was taken again after a restart counts once, as it was taken last.
    online = list({line.step: line for line in read_records(run_dir / "online.jsonl", OnlineStep, _ANEW)}.values())
    steps = {line.step: line for line in read_records(run_dir / "metrics.jsonl", StepMetrics, _ANEW)}
    calls = _calls(online)
    if not calls or len(steps) < 2:
        wanted = "two optimizer steps or more, as the first warms up, and an online iteration with calls"
        raise StoreError(f"{run_dir}: expected {wanted}, found {len(steps)} and {len(online)}. {_ANEW}")
    made_in = group_making(configuration.load(run_dir / "config.yaml"), calls, online=True).seconds
    shared = median((line.seconds - line.load_seconds) / made_in(len(line.ages) + line.rejected) for line in online)
    phases = read_object(run_dir / "journal.json")["phases"]
    # Version 0 is what the engines start with: its costs count only when there is no other.
    handed_out = [line for line in online if line.version > 0] or online
    publishing = {line.version: line.publish_seconds for line in online}
    spent = sum(line.seconds + line.rollout_wait_s for line in steps.values()) + sum(publishing.values())
    return Rates(
        learner_seconds=median(steps[number].seconds for number in sorted(steps)[1:]),
        publish_seconds=median(line.publish_seconds for line in handed_out),
        load_seconds=median(line.load_seconds for line in handed_out),
        start_seconds=max(0.0, phases["learner"] - spent) if "learner" in phases else None,
        calls={method: {role: costs[role] * shared for role in costs} for method, costs in calls.items()},
    )


def _calls(lines: Sequence[OnlineStep]) -> dict[str, dict[str, float]]:
    """Before calls that shared a replica are taken out."""
    totals: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for line in lines:
        for name, sums in line.calls.items():
            totals[name].update(sums)
    found: defaultdict[str, dict[str, float]] = defaultdict(dict)
    for name, total in totals.items():
        role, _, method = name.partition(".")
        if total["questions"]:
            found[method][role] = total["seconds"] / total["questions"]
    return dict(found)
