"""The record of a finished run, summary.json: ``pipeline.outcome`` writes it, report and studies read it.

The file nests as the classes do. Accuracies and shares are fractions, times are wall seconds. A number that the run
could not measure is NaN here and null in the file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from masters_ray.data import Overlap
from masters_ray.evaluate import Accuracy
from masters_ray.files import Measured
from masters_ray.records import LogprobMismatch, StageOutcome


@dataclass(frozen=True, kw_only=True)
class Accuracies:
    """Held-out accuracy of each model, on the questions that all of them were asked."""

    teacher: Accuracy
    """Without a mask."""
    student_before: Accuracy
    student_after: Accuracy


@dataclass(frozen=True, kw_only=True)
class EvaluationFacts:
    """How the held-out answers were marked."""

    marked_by: str
    """judge or rule."""
    left_out: int
    """Questions that one of the models could not be asked; they count in no accuracy."""
    refused: dict[str, int]
    """teacher, student_before, student_after → questions that it could not be asked."""
    cut: dict[str, float]
    """The same models → share of their answers that were cut at ``max_tokens``."""
    max_tokens: int
    remarks: list[str]
    """Where judge and rule differ, in sentences."""


@dataclass(frozen=True, kw_only=True)
class JudgeFacts:
    """Who judged the answers that were learned from; counts over all stages as in ``StageOutcome``."""

    of_teacher: str
    """Judge of the teacher's answers: student, teacher or rule."""
    of_student: str
    rule: str
    """exact, relaxed, choice or vqa."""
    agreement_with_rule: float | None
    """Fraction of the ``compared`` answers on which judge and rule say the same; None without such answers."""
    judged: int
    """Answers with a readable verdict."""
    unjudged: int
    compared: int
    judge_right: int
    rule_right: int
    judge_rule_agreements: int
    defused_answers: int
    defused_questions: int


@dataclass(frozen=True, kw_only=True)
class LearnerFacts:
    """What the learner did in all."""

    steps: int
    skipped: int
    """Steps that were not taken, because their loss or gradient was not finite."""
    groups: int
    answer_tokens: int
    tokens: int
    """Of all sequences; a prompt counts once for its group."""
    seconds: float
    """Of the steps alone."""
    workers: int
    zero_stage: int
    left_out: int
    """Stored rows that it could not read."""
    agreement: list[LogprobMismatch]
    """By stage."""


@dataclass(frozen=True, kw_only=True)
class OnlineFacts:
    """Online iterations: what was asked for and what came of it. Ages are optimizer steps by which the student that
    wrote was behind the one that learned."""

    fraction: float
    """Asked for (rollout.online_fraction)."""
    steps: int
    """Optimizer steps with fresh answers."""
    share: float
    """Of all steps."""
    groups: int
    mean_age: float | None
    """None without fresh answers."""
    largest_age: float | None
    waited_seconds: float
    """In which the learner stood still because fresh answers were not there yet."""
    placement: Literal["turns", "beside"] | None
    """Whether learner and rollouts took turns on the devices or worked beside each other; None: all was offline."""


@dataclass(frozen=True, kw_only=True)
class SplitFacts:
    """Where questions came from."""

    problems: int
    """Questions that were used."""
    quarantined: int
    """Rows that were set aside."""
    digest: str
    """Of the questions, in whatever order."""
    changed_pictures: dict[str, int]
    """What decoding took beside → pictures."""
    remarks: list[str]
    """What a person should know of the source."""


@dataclass(frozen=True, kw_only=True)
class DataFacts:
    train: SplitFacts
    held_out: SplitFacts
    overlap: Overlap


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """A model as it was before the run."""

    checkpoint: str
    digest: str
    """SHA-256 of its weights."""
    parameters: int


@dataclass(frozen=True, kw_only=True)
class ModelsFacts:
    teachers: list[ModelFacts]
    """In the order in which they teach."""
    student: ModelFacts


@dataclass(frozen=True, kw_only=True)
class CallFacts:
    """How the run was called."""

    dir: str
    seed: int
    started: str
    """ISO 8601."""
    config_file: str


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Everything that is known of a run once it is finished."""

    accuracy: Accuracies
    evaluation: EvaluationFacts
    judge: JudgeFacts
    stages: list[StageOutcome]
    wall_seconds: float
    phases: dict[str, Measured]
    """Phase → its wall seconds, in the order of the run."""
    learner: LearnerFacts
    online: OnlineFacts
    data: DataFacts
    models: ModelsFacts
    run: CallFacts
    versions: dict[str, str]
    """Package → its version."""
    config: str
    """The whole configuration, YAML."""
