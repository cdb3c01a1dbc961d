"""Messages between driver and worker group: the job of the group, and the reports that it sends while it trains."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from masters_ray.config import Learner, Part, Reward, Transfer
from masters_ray.method.schedule import Iteration
from masters_ray.records import LeftOut, LogprobMismatch, SkippedStep, StepMetrics


@dataclass(frozen=True, kw_only=True)
class StagePlan:
    """One stage's part of the dataset, and the teacher that made it."""

    stage: int
    ratio: float
    rows: int  # rows stored before training
    teacher: str = ""
    masked: tuple[Part, ...] = ()
    teacher_digest: str = ""  # of the masked weights with which the rows were made


@dataclass(frozen=True, kw_only=True)
class LearnerJob:
    """Job: train ``checkpoint`` once on the dataset's rows and export it. All nodes must see the directories."""

    checkpoint: str
    settings: Learner
    reward: Reward
    seed: int
    stages: tuple[StagePlan, ...]
    iterations: tuple[Iteration, ...]
    max_staleness: int = 0  # largest staleness of a fresh group, in optimizer steps
    engine_dtype: str = "float32"  # number format of the engine that computed the reference log-probabilities
    max_set_aside_share: float = 0.05  # of questions with unreadable stored rows; a single row always may be
    transfer: Transfer = "object_store"
    turns: bool = False
    until: int | None = None  # the step after which the student is exported and the learner ends; None: the last
    export_to: Path
    storage: Path  # directory for checkpoints and Ray Train's state

    @property
    def steps(self) -> list[tuple[StagePlan, Iteration]]:
        by_stage = {plan.stage: plan for plan in self.stages}
        return [(by_stage[one.stage], one) for one in self.iterations]

    @property
    def adapters_to(self) -> Path:
        return self.export_to.with_name(f"{self.export_to.name}_adapters")

    @property
    def online(self) -> list[int]:
        return [one.number for one in self.iterations if one.online]


@dataclass(frozen=True, kw_only=True)
class GroupRewards:
    """Rewards of one group in the step that trained on it; lists have one entry per answer."""

    stage: int
    position: int
    divergences: list[float]  # mean JSD of teacher and current student, nats
    distillation: list[float]
    advantages: list[float]
    version: int | None = None  # ``RolloutGroup.version``; tells a fresh group from a stored one of the same position


@dataclass(frozen=True, kw_only=True)
class TakenStep:
    metrics: StepMetrics
    rewards: list[GroupRewards]  # of its first groups


@dataclass(frozen=True, kw_only=True)
class CheckpointSaved:
    """A checkpoint is being written; it holds all steps up to ``step``."""

    step: int


@dataclass(frozen=True, kw_only=True)
class Told:
    """A message for the user: a warning, or what the worker group does until its next step or message ("begun")."""

    kind: Literal["warning", "begun"]
    text: str


StepReport = TakenStep | SkippedStep | LeftOut  # what a checkpoint remembers of the steps before it, in their order
Report = StepReport | CheckpointSaved | LogprobMismatch | Told | str
"""What a worker group reports to the driver: steps, checkpoints, each stage's comparison with the engine, messages for
the user."""
