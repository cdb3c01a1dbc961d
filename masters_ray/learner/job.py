"""What a worker group is asked to do, and what it tells while it does it."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import TypeAdapter

from masters_ray.config import Learner, Part, Reward, Transfer
from masters_ray.method.schedule import Iteration
from masters_ray.records import LeftOut, LogprobMismatch, SkippedStep, StepMetrics


@dataclass(frozen=True, kw_only=True)
class StagePlan:
    """One stage's part of the dataset."""

    stage: int
    ratio: float
    rows: int
    """Stored before training."""
    teacher: int = 0
    """Which of the run's teachers."""
    teacher_digest: str = ""
    """Of its masked weights, as the rows were made with them."""


@dataclass(frozen=True, kw_only=True)
class LiveSource:
    """A teacher that is asked while the student learns."""

    checkpoint: str
    parts: tuple[Part, ...]
    """Those that are masked."""


@dataclass(frozen=True, kw_only=True)
class LearnerJob:
    """Train ``checkpoint`` on the dataset's rows, in their order, once; export the result."""

    checkpoint: str
    settings: Learner
    reward: Reward
    seed: int
    stages: tuple[StagePlan, ...]
    iterations: tuple[Iteration, ...]
    """Of all stages."""
    max_staleness: int = 0
    """Optimizer steps by which the writer of a fresh group may be behind."""
    engine_dtype: str = "float32"
    """Of the engine that gave the reference log-probabilities."""
    max_set_aside_share: float = 0.05
    """Fraction of the questions whose stored rows may turn out unreadable; a single one always may."""
    transfer: Transfer = "object_store"
    """How the student's weights reach the rollouts."""
    turns: bool = False
    """The learner and the rollouts of online iterations take turns."""
    export_to: Path
    """The trained student as a Hugging Face directory; every worker's node must see this path."""
    adapters_to: Path
    """The same for the adapters alone, if there are any."""
    live: tuple[LiveSource, ...] = ()
    """The run's teachers, when the learner asks them itself; otherwise what they said is stored."""
    storage: Path
    """The worker group's own directory: checkpoints, skipped steps, Ray Train's state; likewise."""

    @property
    def steps(self) -> list[tuple[StagePlan, Iteration]]:
        """Every optimizer step with its stage."""
        by_stage = {plan.stage: plan for plan in self.stages}
        return [(by_stage[one.stage], one) for one in self.iterations]

    @property
    def online(self) -> list[int]:
        """The iterations that want fresh groups."""
        return [one.number for one in self.iterations if one.online]

    @property
    def online_in_words(self) -> str:
        """To be said when the learner starts."""
        if not self.online:
            return ""
        return f"; {len(self.online)} of its {len(self.steps)} iterations are online, weights by {self.transfer}"


@dataclass(frozen=True, kw_only=True)
class GroupRewards:
    """How one group was rewarded in the step that trained on it; lists have one entry per answer."""

    stage: int
    position: int
    divergences: list[float]
    """Mean JSD of teacher and current student, nats."""
    distillation: list[float]
    advantages: list[float]
    version: int | None = None
    """As ``RolloutGroup.version``: a fresh group and a stored one may have the same position."""


@dataclass(kw_only=True)
class LearnerNews:
    """What a worker group tells the driver."""

    steps: list[StepMetrics] = field(default_factory=list)
    rewards: dict[int, list[GroupRewards]] = field(default_factory=dict)
    """Step → of its first groups."""
    skipped: list[SkippedStep] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    agreements: list[LogprobMismatch] = field(default_factory=list)
    """Of each stage."""
    notes: list[str] = field(default_factory=list)
    """Sentences for the person who waits."""

    def add(self, news: LearnerNews) -> None:
        self.steps += news.steps
        self.rewards |= news.rewards
        self.skipped += news.skipped
        self.left_out += news.left_out
        self.agreements += news.agreements
        self.notes += news.notes

    def as_json(self) -> str:
        """What a checkpoint holds of it: not the notes, and no agreements, which are measured whenever the learner
        starts."""
        return json.dumps(dataclasses.asdict(self) | {"notes": [], "agreements": []})

    @classmethod
    def of(cls, text: str) -> LearnerNews:
        """The inverse."""
        return TypeAdapter(cls).validate_json(text)
