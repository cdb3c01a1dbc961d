"""Seconds of a run's parts, measured or written by hand (``rates.json``), and of making groups at these rates."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from pathlib import Path
from statistics import fmean, median
from typing import Annotated, Any, ClassVar, Self

from pydantic import ConfigDict, Field, NonNegativeFloat, PositiveFloat

from masters_ray import config as configuration
from masters_ray.config import Config
from masters_ray.errors import StoreError
from masters_ray.files import read_record, read_records
from masters_ray.records import OnlineStep, StepMetrics

_ANEW = "Name a run with rollout.online_fraction above 0, or a rates.json (--rates)."

_Role = Annotated[str, Field(pattern="^(teacher|student|judge|reference)$")]


@dataclass(frozen=True, kw_only=True)
class GroupMaking:
    """The calls by which questions become groups, and the replicas that take them."""

    rounds: Sequence[Mapping[str, float]]
    """The rounds of calls of a batch; each is pool → seconds per question, and its calls run in parallel."""
    replicas: Mapping[str, int]
    """Pool (teacher, student, judge) → number of replicas. In online iterations the judge's keep the weights before
    training and are the reference policy, too."""
    batch_rows: int

    def seconds(self, questions: int) -> float:
        """Returns the seconds until the last group is made. A replica takes calls one at a time, in the order of
        arrival, as an engine admits the sequences of several calls."""
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
    """online: of online iterations; otherwise of the stages before learning, where the student that writes is also the
    reference policy and is called once for both. calls: as ``Rates.calls``."""
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
    """The content of a ``rates.json``."""

    __pydantic_config__: ClassVar = ConfigDict(extra="forbid", allow_inf_nan=False)

    learner_seconds: PositiveFloat
    """Seconds of an optimizer step without waiting: mean over the steps but the first, as their sum is forecast."""
    publish_seconds: NonNegativeFloat
    """Seconds that the learner spends on publishing a version of its weights: median over the versions."""
    load_seconds: NonNegativeFloat
    """Seconds until all replicas of the student hold a version: median over the versions."""
    start_seconds: NonNegativeFloat | None
    """Seconds of the learner's phase beside steps, waiting and publishing; None: unknown, as the phase still lasts."""
    calls: Annotated[dict[str, Annotated[dict[_Role, NonNegativeFloat], Field(min_length=1)]], Field(min_length=1)]
    """Method → role → seconds of a replica per question. Methods are in the order in which a batch calls them; a
    method's roles are called in parallel. Example: ``{"answer": {"teacher": 0.25, "student": 0.1}}``."""

    @classmethod
    def load(cls, path: Path) -> Self:
        """Reads a rates.json, or measures the rates of a run, which may be in progress. Raises StoreError, also for a
        run without online iterations or with only its first step, a warm-up that does not count."""
        if path.suffix == ".json":
            remedy = "Mend the file; the fields of Rates in masters_ray/plan/rates.py are its keys."
            return read_record(path, cls, remedy)
        # A step that was repeated after a restart counts once, as it was last taken.
        online = list({line.step: line for line in read_records(path / "online.jsonl", OnlineStep, _ANEW)}.values())
        steps = {line.step: line for line in read_records(path / "metrics.jsonl", StepMetrics, _ANEW)}
        calls = _calls(online)
        if not calls or len(steps) < 2:
            wanted = "two optimizer steps or more, as the first warms up, and an online iteration with calls"
            raise StoreError(f"{path}: expected {wanted}, found {len(steps)} and {len(online)}. {_ANEW}")
        made_in = group_making(configuration.load(path / "config.yaml"), calls, online=True).seconds
        # A call's wall time includes other calls on its replica; with this factor, GroupMaking takes as long as those.
        shared = median((line.seconds - line.load_seconds) / made_in(len(line.ages) + line.rejected) for line in online)
        phases = read_record(path / "journal.json", dict[str, Any])["phases"]
        # Engines start with version 0: its costs count only when there is no other version.
        handed_out = [line for line in online if line.version > 0] or online
        publishing = {line.version: line.publish_seconds for line in online}
        spent = sum(line.seconds + line.rollout_wait_s for line in steps.values()) + sum(publishing.values())
        return cls(
            learner_seconds=fmean(steps[number].seconds for number in sorted(steps)[1:]),
            publish_seconds=median(line.publish_seconds for line in handed_out),
            load_seconds=median(line.load_seconds for line in handed_out),
            start_seconds=max(0.0, phases["learner"] - spent) if "learner" in phases else None,
            calls={method: {role: costs[role] * shared for role in costs} for method, costs in calls.items()},
        )


def _calls(lines: Sequence[OnlineStep]) -> dict[str, dict[str, float]]:
    """Returns ``Rates.calls`` as measured, before the correction for calls that share a replica."""
    found: dict[str, dict[str, float]] = {}
    for name in dict.fromkeys(name for line in lines for name in line.calls):
        role, _, method = name.partition(".")
        sums = [line.calls[name] for line in lines if name in line.calls]
        if questions := sum(one["questions"] for one in sums):
            found.setdefault(method, {})[role] = sum(one["seconds"] for one in sums) / questions
    return found
