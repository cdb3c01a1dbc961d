"""Seconds of a run's parts, measured or written by hand (``rates.json``), and of making groups at these rates."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from pathlib import Path
from statistics import fmean, median
from typing import Annotated, Any, ClassVar, Self

from pydantic import ConfigDict, Field, NonNegativeFloat, PositiveFloat

from masters_ray import config as configuration
from masters_ray import store
from masters_ray.config import Config
from masters_ray.errors import StoreError
from masters_ray.files import read_record, read_records
from masters_ray.method import schedule
from masters_ray.pipeline.held_out import read_marks
from masters_ray.pipeline.run_dir import RunDirectory
from masters_ray.records import OnlineStep, StageOutcome, StepMetrics

_ANEW = "Name a run that has learned, or a rates.json (--rates), or measure with --probe."
_EVALUATIONS = tuple(f"evaluation {when}" for when in ("before", "while learning", "after"))
_TIMED = ("start of the engines", "rollouts", "learner", *_EVALUATIONS)

_Role = Annotated[str, Field(pattern="^(teacher|student|judge|reference)$")]
Calls = dict[str, dict[str, float]]
"""Method → role → seconds of a replica per question. Methods are in the order in which a batch calls them; a method's
roles are called in parallel. Example: ``{"answer": {"teacher": 0.25, "student": 0.1}}``."""


@dataclass(frozen=True, kw_only=True)
class GroupMaking:
    """The calls by which questions become groups, and the replicas that take them."""

    rounds: Sequence[Mapping[str, float]]
    """The rounds of calls of a batch; each is pool → seconds per question, and its calls run in parallel."""
    replicas: Mapping[str, int]
    """Pool (teacher, student, judge) → number of replicas. In online iterations the judge's keep the weights before
    training and are the reference policy, too."""
    batch_rows: int
    cores: float = float("inf")  # replicas that can work at the same time: on CPUs, cores that they share

    def seconds(self, questions: int) -> float:
        """Returns the seconds until the last group is made. A replica takes calls one at a time, in the order of
        arrival, as an engine admits the sequences of several calls; together they take no less than their work divided
        by the cores."""
        free = {pool: [0.0] * count for pool, count in self.replicas.items()}
        todo = [(0.0, first, 0) for first in range(0, questions, self.batch_rows)]
        last = work = 0.0
        while todo:
            ready, first, number = heappop(todo)
            ends = []
            for pool, seconds in self.rounds[number].items():
                begun = max(ready, heappop(free[pool]))
                taken = seconds * min(self.batch_rows, questions - first)
                ends.append(begun + taken)
                heappush(free[pool], ends[-1])
                work += taken
            last = max(last, *ends)
            if number + 1 < len(self.rounds):
                heappush(todo, (max(ends), first, number + 1))
        return max(last, work / self.cores)

    def busy(self, questions: int) -> dict[str, float]:
        """Returns pool → seconds that each of its replicas works, as a mean."""
        sums = dict.fromkeys(self.replicas, 0.0)
        for calls in self.rounds:
            for pool, seconds in calls.items():
                sums[pool] += questions * seconds / self.replicas[pool]
        return sums


def group_making(
    config: Config, calls: Mapping[str, Mapping[str, float]], *, online: bool, cores: float = float("inf")
) -> GroupMaking:
    """online: of online iterations; otherwise of the stages before learning, where the student that writes is also the
    reference policy and is called once for both. calls: as ``Rates.calls``."""
    judge = config.judge
    if judge.of_teacher == judge.of_student == "rule":
        calls = {method: costs for method, costs in calls.items() if method != "judge"}
    roles = {"reference": "judge" if online else "student"}
    if judge.follows_student if online else judge.share_process:
        roles["judge"] = "student"
    rounds: list[dict[str, float]] = [{} for _ in calls]
    for pools, costs in zip(rounds, calls.values(), strict=True):
        for role, seconds in costs.items():
            pool = roles.get(role, role)
            pools[pool] = max(seconds, pools.get(pool, 0.0))
    replicas = {"teacher": config.teacher.replicas, "student": config.student.replicas, "judge": judge.replicas}
    return GroupMaking(rounds=rounds, replicas=replicas, batch_rows=config.rollout.batch_rows, cores=cores)


@dataclass(frozen=True, kw_only=True)
class Rates:
    """The content of a ``rates.json``: seconds of a run's parts on the devices that it was measured on."""

    __pydantic_config__: ClassVar = ConfigDict(extra="forbid", allow_inf_nan=False)

    group_seconds: PositiveFloat
    """Seconds of a learner worker per group, updates included: mean over the steps but the first, without waiting."""
    calls: Annotated[dict[str, Annotated[dict[_Role, NonNegativeFloat], Field(min_length=1)]], Field(min_length=1)]
    """``Calls`` of the rollouts before learning."""
    online_calls: dict[str, dict[_Role, NonNegativeFloat]] = dataclasses.field(default_factory=dict)
    """The same of online iterations; empty: as ``calls``."""
    publish_seconds: NonNegativeFloat | None = None
    """Seconds that the learner spends on publishing a version of its weights: median over the versions. None: not
    known, so that no online iterations can be forecast."""
    load_seconds: NonNegativeFloat | None = None
    """Seconds until all replicas of the student hold a version: median over the versions."""
    start_seconds: NonNegativeFloat | None = None
    """Seconds of the learner's phase beside steps, waiting and publishing, for each of its starts if it ended to be
    measured; None: unknown, as the phase still lasts."""
    engines_seconds: NonNegativeFloat = 0.0  # start of the engines, once for each teacher
    mask_seconds: NonNegativeFloat = 0.0
    """Seconds of a stage's rollouts phase beside its batches: the next mask, the store's end."""
    evaluation_seconds: NonNegativeFloat = 0.0  # seconds of measuring a model, per held-out question
    measuring_seconds: NonNegativeFloat = 0.0  # the rest of measuring the trained student: its engines' start
    once: dict[str, NonNegativeFloat] = dataclasses.field(default_factory=dict)
    """Phase → seconds of what a run does once, whatever its size: data, checks, the start and end of Ray."""
    row_bytes: NonNegativeFloat | None = None  # bytes of a stored row with its pictures; None: not known

    @classmethod
    def load(cls, path: Path) -> Self:
        """Reads a rates.json, or measures the rates of a run, which may be in progress. Raises StoreError, also for a
        run that holds no rollouts, or only the first optimizer step, a warm-up that does not count."""
        if path.suffix == ".json":
            remedy = "Mend the file; the fields of Rates in masters_ray/plan/rates.py are its keys."
            return read_record(path, cls, remedy)
        steps = {line.step: line for line in read_records(path / "metrics.jsonl", StepMetrics, _ANEW)}
        config = configuration.load(path / "config.yaml", [f"run.dir={path}"])
        directory, journal = RunDirectory(config), read_record(path / "journal.json", dict[str, Any])
        stages, online = _stages(directory, config), _online(path / "online.jsonl")
        of_stages = _shared(stages, config, online=False)
        of_online = _shared([(len(line.ages) + line.rejected, line) for line in online], config, online=True)
        if not (of_stages or of_online) or len(steps) < 2:
            wanted = "two optimizer steps or more, as the first warms up, and rollouts with calls"
            found = f"{len(steps)} and {len(stages) + len(online)} stages and online iterations"
            raise StoreError(f"{path}: expected {wanted}, found {found}. {_ANEW}")
        counted = [steps[number] for number in sorted(steps)[1:]]
        # Engines start with version 0: its costs count only when there is no other version.
        handed_out = [line for line in online if line.version > 0] or online
        publishing = {line.version: line.publish_seconds for line in online}
        spent = sum(line.seconds + line.rollout_wait_s for line in steps.values()) + sum(publishing.values())
        phases, starts = journal["phases"], 1 + len([*directory.students.glob("step-*.json")])
        return cls(
            group_seconds=config.learner.workers
            * fmean(one.seconds for one in counted)
            / fmean(one.groups for one in counted),
            calls=of_stages or of_online,
            online_calls=of_online,
            publish_seconds=median(line.publish_seconds for line in handed_out) if online else None,
            load_seconds=median(line.load_seconds for line in handed_out) if online else None,
            start_seconds=max(0.0, phases["learner"] - spent) / starts if "learner" in phases else None,
            **_around(directory, phases, stages, journal["wall_seconds"]),
        )


def _stages(directory: RunDirectory, config: Config) -> list[tuple[int, StageOutcome]]:
    """Returns (questions, outcome) of each finished stage whose rollouts were made before learning."""
    planned = schedule.plan(config.schedules, 10**6)  # the number of stages does not depend on that of the rows
    manifests = [store.read_manifest(directory.stage(stage.index)) for stage, _ in planned]
    outcomes = [StageOutcome(**manifest.made_by) for manifest in manifests if manifest is not None]
    return [(one.rows + sum(one.set_aside.values()), one) for one in outcomes if one.calls]


def _online(file: Path) -> list[OnlineStep]:
    """Returns the online iterations; one that was repeated after a restart counts once, as it was last taken."""
    if not file.exists():
        return []
    return list({line.step: line for line in read_records(file, OnlineStep, _ANEW)}.values())


def _shared(work: Sequence[tuple[int, OnlineStep | StageOutcome]], config: Config, *, online: bool) -> Calls:
    """Returns the ``Calls`` of measured work, (questions, what was noted). A call's wall time includes other calls on
    its replica; one factor takes these out, with which ``GroupMaking`` takes as long as the work did."""
    calls: Calls = {}
    for name in dict.fromkeys(name for _, one in work for name in one.calls):
        role, _, method = name.partition(".")
        sums = [one.calls[name] for _, one in work if name in one.calls]
        if questions := sum(one["questions"] for one in sums):
            calls.setdefault(method, {})[role] = sum(one["seconds"] for one in sums) / questions
    if not calls:
        return {}
    made_in = group_making(config, calls, online=online).seconds
    factors = [
        (one.seconds - (one.load_seconds if isinstance(one, OnlineStep) else 0.0)) / made_in(questions)
        for questions, one in work
        if questions
    ]
    factor = median(factors) if online else sum(one.seconds for _, one in work) / sum(made_in(q) for q, _ in work)
    return {method: {role: seconds * factor for role, seconds in costs.items()} for method, costs in calls.items()}


def _around(
    directory: RunDirectory, phases: Mapping[str, float], stages: Sequence[tuple[int, StageOutcome]], wall: float
) -> dict[str, Any]:
    """Returns the rates of what is around rollouts and steps."""
    marks = directory.evaluation("student_before")
    asked = len(read_marks(marks)) if marks.exists() else 0
    measuring = phases.get("evaluation before", 0.0) / (2 * asked) if asked else 0.0
    beside = phases.get("rollouts", 0.0) - sum(one.seconds for _, one in stages)
    rows = sum(one.rows for _, one in stages)
    return {
        "engines_seconds": phases.get("start of the engines", 0.0),
        "mask_seconds": max(0.0, beside) / len(stages) if stages else 0.0,
        "evaluation_seconds": measuring,
        "measuring_seconds": max(0.0, phases.get("evaluation after", 0.0) - asked * measuring),
        "once": {name: seconds for name, seconds in phases.items() if name not in _TIMED}
        | {"everything else": max(0.0, wall - sum(phases.values()))},
        "row_bytes": sum(one.stored_bytes for _, one in stages) / rows if rows else None,
    }
