"""The records of a finished run (summary.json, examples.json), which ``pipeline.outcome`` writes, and their readers.
Accuracies and shares are fractions, times wall seconds. What the run could not measure is NaN here, null in a file."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeVar

from masters_ray.config import Judge
from masters_ray.data import Overlap
from masters_ray.evaluate import Accuracy, Change, Interval, Marked
from masters_ray.files import Measured, read_record, read_records
from masters_ray.learner.job import GroupRewards
from masters_ray.records import AnswerTally, JudgedAnswer, LogprobMismatch, StageOutcome, StepMetrics

T = TypeVar("T")

SUMMARY = "summary.json"
METRICS = "metrics.jsonl"
EXAMPLES = "examples.json"
PLAN = "plan/plan.json"
BENCHMARKS = "benchmarks/benchmarks.json"
_REMEDY = (
    "Put it back from a copy. A run that is not finished writes it with the same command; one that is finished has to "
    "be run again in another run.dir."
)


@dataclass(frozen=True, kw_only=True)
class Accuracies:
    """Held-out accuracy of the unmasked teacher and the student, on the questions that all of them were asked."""

    teacher: Accuracy
    student_before: Accuracy
    student_after: Accuracy


@dataclass(frozen=True, kw_only=True)
class EvaluationFacts:
    marked_by: Literal["judge", "rule"]
    left_out: int  # questions that a model could not be asked; they count in no accuracy
    cut: dict[str, float]  # model (teacher, student_before, student_after) → share of its answers cut at ``max_tokens``
    max_tokens: int
    remarks: list[str]


@dataclass(frozen=True, kw_only=True)
class LearnerFacts:
    steps: int
    skipped: int
    groups: int
    answer_tokens: int
    tokens: int  # as ``StepMetrics.tokens``
    seconds: float  # wall seconds of the steps alone
    workers: int
    zero_stage: int
    left_out: int
    agreement: list[LogprobMismatch]


@dataclass(frozen=True, kw_only=True)
class SplitFacts:
    problems: int
    quarantined: int
    digest: str  # digest of the questions, independent of their order
    remarks: list[str]  # as ``data.Problems.mended`` and ``remarks``


@dataclass(frozen=True, kw_only=True)
class SourceFacts:
    """A data source: its part of the training questions, and the accuracy on its held-out questions."""

    name: str
    rule: str  # marks the answers; "": as the configuration says, "judge": a judge does
    questions: int  # training questions, 0 for a source of held-out questions alone
    set_aside: int  # rows that could not be used, and held-out ones
    dropped: int  # training questions without a row in a stage
    right: dict[str, float]  # writer (teacher, student) → fraction of its stored answers with R_acc = 1
    accuracy: dict[str, Interval]  # model (as in ``Accuracies``) → on its held-out questions; empty without any


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """A model before the run."""

    checkpoint: str
    digest: str
    parameters: int


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A forecast of the run: what ``masters-ray plan`` writes."""

    source: str  # what its rates were, in words
    phases: dict[str, float]  # phase → wall seconds, with "everything else" as the report has it
    store_bytes: float | None  # of the stages' stores
    config: str  # the configuration that it was made for, as YAML


@dataclass(frozen=True, kw_only=True)
class BenchmarkScore(Interval):
    """A model's score on a benchmark, a fraction."""

    metric: str
    digest: str  # of the model's checkpoint
    harness: str  # version of lmms-eval
    task_version: str
    judge: str  # name of the model that judged; empty where a rule marked


@dataclass(frozen=True, kw_only=True)
class BenchmarkRow:
    """A benchmark as ``masters-ray benchmark`` measures it."""

    name: str
    paper: float | None  # the paper's figure for this student after training, a fraction
    scores: dict[str, BenchmarkScore]  # model (teacher, student_before, student_after) → its score


OutrankedBy = Literal["rewarded", "denied", "verdict", "distillation", "cut", "reasoning"]
"""Why a wrong answer has the advantage of a right one, or a larger one: the judge calls it right (rewarded) or the
right one wrong (denied; verdict: one of both, by an earlier version); R_distill, or R_rea, outweighs R_acc;
reward.cut_answers changes what a cut answer gets."""


@dataclass(frozen=True, kw_only=True)
class RewardFacts:
    """How advantages rank the answers of the groups that were looked at. The rule says what is wrong and right, or the
    verdict where the rule calls all answers of a group alike."""

    groups: int
    mixed: int  # groups with a wrong and a right answer
    above: int  # groups in which a wrong answer has a larger advantage than a right one
    level: int  # other groups in which a wrong answer has the advantage of a right one
    disputed: int  # groups with an answer on which rule and verdict differ
    reinforced: int | None = (
        None  # of ``mixed``, groups in which a wrong answer has an advantage above 0; None, as the next:
    )
    idle: int | None = None  # not noted by an earlier version. Of ``level``, groups whose advantages are all 0
    reasons: dict[OutrankedBy, int]  # reason → groups of ``above`` and ``level`` that have it


@dataclass(frozen=True, kw_only=True)
class CoursePoint:
    """Held-out accuracy of the student after a number of optimizer steps, on the questions of all such points."""

    step: int
    accuracy: Accuracy


@dataclass(frozen=True, kw_only=True)
class Kept:
    """The student that learner.keep=best chose by its accuracy while it learned."""

    step: int
    questions: int  # held-out questions by which it was chosen
    others_before: Accuracy  # before training, on the other held-out questions; NaN without any, as ``others_after``
    others_after: Accuracy


@dataclass(frozen=True, kw_only=True)
class Summary:
    accuracy: Accuracies
    evaluation: EvaluationFacts
    judge: Judge
    answers: AnswerTally
    stages: list[StageOutcome]
    wall_seconds: float
    phases: dict[str, Measured]  # phase → wall seconds, in the order of the run
    learner: LearnerFacts
    train: SplitFacts
    held_out: SplitFacts
    overlap: Overlap
    teachers: list[ModelFacts]  # in the order of their use
    student: ModelFacts
    dir: str
    seed: int
    started: str
    config_file: str
    versions: dict[str, str]
    config: str  # the whole configuration as YAML
    sources: list[SourceFacts] = field(default_factory=list)  # empty for a run with a single source
    course: list[CoursePoint] = field(default_factory=list)  # from step 0 to the last; empty without evaluation.every
    kept: Kept | None = None
    planned: Planned | None = None  # the last plan that was made for this run.dir before the run ended
    placement: Literal["turns", "beside"] | None = None  # of learner and engines; None: fully offline
    benchmarks: dict[str, BenchmarkRow] = field(default_factory=dict)  # lmms-eval's id of the task → what was measured
    change: Change | None = None  # student after minus before; None, as the next two: not noted by an earlier version
    changes: dict[str, Change] = field(default_factory=dict)  # kind → ``change`` on its questions
    rewards: RewardFacts | None = None


@dataclass(frozen=True, kw_only=True)
class Example:
    """A question that the report shows: a training question with its group, or a held-out one with the student's
    answers before and after training."""

    id: str
    question: str
    label: str
    kind: str
    pictures: list[str]  # data URI of each picture, or the reason why it cannot be read
    mask_ratio: float | None = None  # the teacher's mask ratio; None for a held-out question, which belongs to no stage
    before: Marked | None = None
    after: Marked | None = None
    teacher: Marked | None = None
    answers: list[JudgedAnswer]
    rewards: GroupRewards | None = None
    by_rule: list[bool] = field(default_factory=list)  # the rule's marks; empty: not noted by an earlier version
    outranked: Literal["above", "level", ""] = ""
    """As ``RewardFacts.above`` and ``level``; "": every right answer has a larger advantage than every wrong one."""
    reasons: list[OutrankedBy] = field(default_factory=list)
    reinforced: list[str] = field(default_factory=list)  # wrong answers with a positive advantage, beside right ones

    @property
    def disputed(self) -> dict[str, int | None]:
        """The answers on which rule and verdict differ, with their verdicts."""
        marked = zip(self.answers, self.by_rule, strict=False)
        return {one.answer.text: one.accuracy for one, by_rule in marked if one.accuracy != by_rule}


def read_summary(folder: Path) -> Summary:
    """Raises StoreError, as all readers, when the file is missing, damaged or lacks a value."""
    return read_record(folder / SUMMARY, Summary, _REMEDY)


def read_plan(folder: Path) -> Planned | None:
    """Returns the plan of a run, None when none was made."""
    return read_record(folder / PLAN, Planned, "Delete it, or make it again.") if (folder / PLAN).exists() else None


def read_benchmarks(folder: Path) -> dict[str, BenchmarkRow]:
    """Returns what ``masters-ray benchmark`` has measured, by task."""
    file, remedy = folder / BENCHMARKS, "Delete it; masters-ray benchmark writes it again."
    return read_record(file, dict[str, BenchmarkRow], remedy) if file.exists() else {}


def read_metrics(folder: Path) -> list[StepMetrics]:
    """Returns the steps sorted by number; the last line of a repeated step counts."""
    steps = {row.step: row for row in read_records(folder / METRICS, StepMetrics, _REMEDY)}
    return [steps[step] for step in sorted(steps)]


def read_optional(folder: Path, name: str, kind: type[T]) -> list[T]:
    """Returns the rows of a JSON-lines file that not every run has; an empty list without it."""
    file = folder / name
    return read_records(file, kind, "Delete it to do without it.") if file.exists() else []


def read_examples(folder: Path) -> list[Example]:
    return read_record(folder / EXAMPLES, list[Example], _REMEDY)
