"""What the report is made from, read and checked: every value has its type, or StoreError says where it is missing."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

from masters_ray.evaluate import Accuracy, Rate
from masters_ray.records import LogprobMismatch, StageOutcome, StepMetrics
from masters_ray.report.values import Value, parse_json, read_json, read_text

SUMMARY = "summary.json"
METRICS = "metrics.jsonl"
EXAMPLES = "examples.json"


@dataclass(frozen=True, kw_only=True)
class Model:
    """One of the two models, as it was before the run."""

    checkpoint: str
    digest: str
    parameters: int


@dataclass(frozen=True, kw_only=True)
class Split:
    """Where questions came from: how many were used and how many were set aside."""

    problems: int
    quarantined: int
    remarks: tuple[str, ...]
    """What a person should know of the source."""


@dataclass(frozen=True, kw_only=True)
class LearnerFacts:
    """What the learner did in all."""

    steps: int
    skipped: int
    """Steps whose loss or gradient was not finite."""
    groups: int
    answer_tokens: int
    tokens: int
    """Of all sequences, prompts once."""
    seconds: float
    workers: int
    zero_stage: int
    left_out: int
    """Stored rows that it could not read."""
    agreements: list[LogprobMismatch]


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The content of summary.json. A number that the run could not measure is NaN."""

    directory: str
    seed: int
    started: str
    """ISO time."""
    config_file: str
    teacher: Accuracy
    before: Accuracy
    after: Accuracy
    marked_by: str
    """Who said which held-out answers are right: judge or rule."""
    left_out: int
    """Held-out questions that one of the models could not be asked, and that count in no accuracy."""
    cut: dict[str, float]
    """teacher, student_before, student_after → share of its held-out answers that were cut."""
    longest: int
    """Tokens at which they were."""
    doubts: tuple[str, ...]
    """Where judge and rule differ on the held-out answers, in sentences."""
    judges: dict[str, str]
    """Source of answers → who judged them: student, teacher or rule."""
    rule: str
    """exact, relaxed or choice."""
    agreement_with_rule: float
    """Fraction of the judged answers on which judge and rule say the same."""
    judged: int
    unjudged: int
    stages: tuple[StageOutcome, ...]
    learner: LearnerFacts
    train: Split
    held_out: Split
    same_question: int
    """Held-out questions that are training questions too."""
    same_picture: int
    """Held-out questions about pictures that stand in training with other questions."""
    teachers: tuple[Model, ...]
    """In the order in which they teach."""
    student_model: Model
    versions: dict[str, str]
    phases: dict[str, float]
    """Wall seconds of each phase, in the order of the run."""
    wall_seconds: float
    config: str
    """The whole configuration, YAML."""


@dataclass(frozen=True, kw_only=True)
class ExampleAnswer:
    """One answer of a group with what the learner made of it."""

    source: str
    text: str
    accuracy: float
    verdict: str
    divergence: float
    """Mean JSD of the answer's tokens, nats."""
    distillation: float
    advantage: float


@dataclass(frozen=True, kw_only=True)
class MarkedAnswer:
    """A held-out answer with its mark."""

    text: str
    correct: bool


@dataclass(frozen=True, kw_only=True)
class Example:
    """One question as the report shows it."""

    id: str
    question: str
    label: str
    kind: str
    stage: int | None
    """None: a held-out question, which belongs to no stage."""
    mask_ratio: float
    pictures: tuple[str, ...]
    """Data URIs."""
    before: MarkedAnswer | None
    """The student's answer before training; None: not asked."""
    after: MarkedAnswer | None
    answers: tuple[ExampleAnswer, ...]
    """The group; empty for a held-out question."""


def read_summary(file: Path) -> Summary:
    """The summary of a finished run. Raises StoreError when it is missing, unreadable or lacks a value."""
    top = read_json(file)
    run, judge, accuracy = top["run"], top["judge"], top["accuracy"]
    return Summary(
        directory=run["dir"].text(),
        seed=run["seed"].whole(),
        started=run["started"].text(),
        config_file=run["config_file"].text(),
        teacher=_accuracy(accuracy["teacher"]),
        before=_accuracy(accuracy["student_before"]),
        after=_accuracy(accuracy["student_after"]),
        marked_by=top["evaluation"]["marked_by"].text(),
        left_out=_later(top["evaluation"], "left_out", 0).whole(),
        cut={name: share.number() for name, share in _later(top["evaluation"], "cut", {}).items()},
        longest=_later(top["evaluation"], "max_tokens", 0).whole(),
        doubts=_texts(top["evaluation"], "remarks"),
        judges={source: judge[f"of_{source}"].text() for source in ("teacher", "student")},
        rule=judge["rule"].text(),
        agreement_with_rule=judge["agreement_with_rule"].number(),
        judged=judge["judged"].whole(),
        unjudged=judge["unjudged"].whole(),
        stages=tuple(_stage(stage) for stage in top["stages"].rows()),
        learner=_learner(top["learner"]),
        train=_split(top["data"]["train"]),
        held_out=_split(top["data"]["held_out"]),
        same_question=_overlap(top["data"], "same_question"),
        same_picture=_overlap(top["data"], "same_picture"),
        teachers=tuple(_model(model) for model in top["models"]["teachers"].rows()),
        student_model=_model(top["models"]["student"]),
        versions={name: str(version.value) for name, version in top["versions"].items()},
        phases={name: seconds.number() for name, seconds in top["phases"].items()},
        wall_seconds=top["wall_seconds"].number(),
        config=top["config"].text(),
    )


def read_metrics(file: Path) -> list[StepMetrics]:
    """The learner's steps in the order of their numbers; the later of two lines counts when a step was repeated.

    A field with a default may be missing, in lines of an earlier version. Raises StoreError when the file is missing,
    or a line is unreadable or lacks another field.
    """
    steps: dict[int, StepMetrics] = {}
    for place, line in enumerate(read_text(file).splitlines(), 1):
        if not line.strip():
            continue
        row = parse_json(file, line, f"line {place}")
        values = {
            field.name: row[field.name].whole() if field.type == "int" else row[field.name].number()
            for field in fields(StepMetrics)
            if field.default is MISSING or row.has(field.name)
        }
        metrics = StepMetrics(**values)  # type: ignore[arg-type]
        steps[metrics.step] = metrics
    return [steps[step] for step in sorted(steps)]


def read_examples(file: Path) -> list[Example]:
    """The questions to show; may be none. Raises StoreError when the file is missing, unreadable or lacks a value."""
    return [_example(row) for row in read_json(file).rows()]


def _rate(node: Value) -> Rate:
    return Rate(value=node["value"].number(), low=node["low"].number(), high=node["high"].number(), n=node["n"].whole())


def _accuracy(node: Value) -> Accuracy:
    total = _rate(node)
    return Accuracy(
        value=total.value,
        low=total.low,
        high=total.high,
        n=total.n,
        by_kind={kind: _rate(rate) for kind, rate in node["by_kind"].items()},
    )


def _later(node: Value, key: str, earlier: Any) -> Value:
    """A value that came after the first summaries; ``earlier`` where it is missing."""
    return node[key] if node.has(key) else Value(node.file, key, earlier)


def _stage(node: Value) -> StageOutcome:
    return StageOutcome(
        stage=node["stage"].whole(),
        ratio=node["ratio"].number(),
        sparsity=node["sparsity"].number(),
        masked={one: count.whole() for one, count in _later(node, "masked", {}).items()},
        unmasked={one: count.whole() for one, count in _later(node, "unmasked", {}).items()},
        teacher_digest=node["teacher_digest"].text(),
        rows=node["rows"].whole(),
        seconds=node["seconds"].number(),
        answers=node["answers"].whole(),
        unjudged=node["unjudged"].whole(),
        empty=node["empty"].whole(),
        set_aside={kind: count.whole() for kind, count in node["set_aside"].items()},
        cut_by_source={source: share.number() for source, share in _later(node, "cut_by_source", {}).items()},
        compared=_later(node, "compared", 0).whole(),
        judge_right=_later(node, "judge_right", 0).whole(),
        rule_right=_later(node, "rule_right", 0).whole(),
        judge_rule_agreements=node["judge_rule_agreements"].whole(),
        defused_answers=_later(node, "defused_answers", 0).whole(),
        defused_questions=_later(node, "defused_questions", 0).whole(),
        accuracy_by_source={source: rate.number() for source, rate in node["accuracy_by_source"].items()},
        reasoning=node["reasoning"].number(),
        left_out=node["left_out"].number(),
    )


def _learner(node: Value) -> LearnerFacts:
    return LearnerFacts(
        steps=node["steps"].whole(),
        skipped=node["skipped"].whole(),
        groups=node["groups"].whole(),
        answer_tokens=node["answer_tokens"].whole(),
        tokens=node["tokens"].whole(),
        seconds=node["seconds"].number(),
        workers=node["workers"].whole(),
        zero_stage=node["zero_stage"].whole(),
        left_out=node["left_out"].whole(),
        agreements=[_agreement(one) for one in node["agreement"].rows()],
    )


def _agreement(node: Value) -> LogprobMismatch:
    return LogprobMismatch(
        stage=node["stage"].whole(),
        rows=node["rows"].whole(),
        row=node["row"].text(),
        mean_gap=node["mean_gap"].number(),
        token_gap=node["token_gap"].number(),
        bound=node["bound"].number(),
        apart=node["apart"].whole(),
    )


def _split(node: Value) -> Split:
    return Split(
        problems=node["problems"].whole(),
        quarantined=node["quarantined"].whole(),
        remarks=_texts(node, "remarks"),
    )


def _texts(node: Value, name: str) -> tuple[str, ...]:
    """A list of sentences, which runs of earlier versions did not write."""
    return tuple(one.text() for one in node[name].rows()) if node.has(name) else ()


def _overlap(node: Value, count: str) -> int:
    """Runs of earlier versions did not look for it."""
    return node["overlap"][count].whole() if node.has("overlap") else 0


def _model(node: Value) -> Model:
    return Model(
        checkpoint=node["checkpoint"].text(), digest=node["digest"].text(), parameters=node["parameters"].whole()
    )


def _marked(node: Value) -> MarkedAnswer | None:
    if node.value is None:
        return None
    return MarkedAnswer(text=node["text"].text(), correct=bool(node["correct"].whole()))


def _example(node: Value) -> Example:
    return Example(
        id=node["id"].text(),
        question=node["question"].text(),
        label=node["label"].text(),
        kind=node["kind"].text(),
        stage=node["stage"].whole_or_none(),
        mask_ratio=node["mask_ratio"].number(),
        pictures=tuple(picture.text() for picture in node["pictures"].rows()),
        before=_marked(node["before"]),
        after=_marked(node["after"]),
        answers=tuple(
            ExampleAnswer(
                source=answer["source"].text(),
                text=answer["text"].text(),
                accuracy=answer["accuracy"].number(),
                verdict=answer["verdict"].text(),
                divergence=answer["divergence"].number(),
                distillation=answer["distillation"].number(),
                advantage=answer["advantage"].number(),
            )
            for answer in node["answers"].rows()
        ),
    )
