"""What a report is made from: three files of a run, read as typed records."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from masters_ray.files import Measured, read_record, read_records
from masters_ray.records import StepMetrics
from masters_ray.report.summary import Summary

SUMMARY = "summary.json"
METRICS = "metrics.jsonl"
EXAMPLES = "examples.json"
_REMEDY = (
    "Put it back from a copy. A run that is not finished writes it with the same command; one that is finished has to "
    "be run again in another run.dir."
)


@dataclass(frozen=True, kw_only=True)
class ExampleAnswer:
    """One answer of a group with what the learner made of it."""

    source: str
    text: str
    accuracy: Measured
    """R_acc; NaN: unjudged."""
    verdict: str
    """What the judge wrote."""
    divergence: Measured
    """Mean JSD of the answer's tokens, nats."""
    distillation: Measured
    """R_distill."""
    advantage: Measured


@dataclass(frozen=True, kw_only=True)
class MarkedAnswer:
    """A held-out answer with its mark."""

    text: str
    correct: int
    """1 or 0."""


@dataclass(frozen=True, kw_only=True)
class Example:
    """One question as the report shows it: of training with its group, or held out with the student's answers."""

    id: str
    question: str
    label: str
    kind: str
    pictures: list[str]
    """Data URIs; of a picture that is gone, why."""
    stage: int | None = None
    """None: a held-out question, which belongs to no stage."""
    mask_ratio: float | None = None
    before: MarkedAnswer | None = None
    """The student's answer to a held-out question before training."""
    after: MarkedAnswer | None = None
    answers: list[ExampleAnswer]
    """The group; empty for a held-out question."""


def read_summary(file: Path) -> Summary:
    """The summary of a finished run. Raises StoreError when it is missing, unreadable or lacks a value."""
    return read_record(file, Summary, _REMEDY)


def read_metrics(file: Path) -> list[StepMetrics]:
    """The learner's steps in the order of their numbers; of a step that was repeated the later line counts. Raises
    StoreError as ``read_summary`` does."""
    steps = {row.step: row for row in read_records(file, StepMetrics, _REMEDY)}
    return [steps[step] for step in sorted(steps)]


def read_examples(file: Path) -> list[Example]:
    """The questions to show; may be none. Raises StoreError as ``read_summary`` does."""
    return read_record(file, list[Example], _REMEDY)
