"""The records of a finished run, summary.json and examples.json, which ``pipeline.outcome`` writes, and their readers.

A file nests as the classes do. Accuracies and shares are fractions, times are wall seconds. A number that the run
could not measure is NaN here and null in the file.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from masters_ray.data import Overlap
from masters_ray.evaluate import Accuracy, Marked
from masters_ray.files import Measured, read_record, read_records
from masters_ray.learner.job import GroupRewards
from masters_ray.records import JudgedAnswer, LogprobMismatch, StageOutcome, StepMetrics

SUMMARY = "summary.json"
METRICS = "metrics.jsonl"
EXAMPLES = "examples.json"
_REMEDY = (
    "Put it back from a copy. A run that is not finished writes it with the same command; one that is finished has to "
    "be run again in another run.dir."
)


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
    cut: dict[str, float]
    """teacher, student_before, student_after → share of its answers that were cut at ``max_tokens``."""
    max_tokens: int
    remarks: list[str]
    """Where judge and rule differ, in sentences."""


@dataclass(frozen=True, kw_only=True)
class JudgeFacts:
    """Who judged the answers that were learned from; counts over all stages as in ``StageOutcome``."""

    of_teacher: str
    """Judge of the teacher's answers: student, teacher or rule; of_student in the same way."""
    of_student: str
    rule: str
    """exact, relaxed, choice or vqa."""
    agreement_with_rule: float | None
    """Fraction of the ``compared`` answers on which judge and rule say the same; None without such answers."""
    judged: int
    """Answers with a readable verdict."""
    unjudged: int
    compared: int


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
    """What a person should know of the source, such as columns that are not used."""


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


@dataclass(frozen=True, kw_only=True)
class Example:
    """One question as the report shows it: of training with its group, or held out with the student's answers."""

    id: str
    question: str
    label: str
    kind: str
    pictures: list[str]
    """Data URIs; of a picture that is gone, why."""
    mask_ratio: float | None = None
    """Of the teacher; None: a held-out question, which belongs to no stage."""
    before: Marked | None = None
    """The student's answer to a held-out question before training."""
    after: Marked | None = None
    answers: list[JudgedAnswer]
    """The group; empty for a held-out question."""
    rewards: GroupRewards | None = None
    """What the learner made of these answers."""


def read_summary(folder: Path) -> Summary:
    """Of a finished run's directory. Raises StoreError, as all here, when the file is missing or lacks a value."""
    return read_record(folder / SUMMARY, Summary, _REMEDY)


def read_metrics(folder: Path) -> list[StepMetrics]:
    """The learner's steps in the order of their numbers; of a step that was repeated the later line counts."""
    steps = {row.step: row for row in read_records(folder / METRICS, StepMetrics, _REMEDY)}
    return [steps[step] for step in sorted(steps)]


def read_examples(folder: Path) -> list[Example]:
    """The questions to show; may be none."""
    return read_record(folder / EXAMPLES, list[Example], _REMEDY)
