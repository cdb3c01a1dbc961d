"""The offline driver: all rollouts and rewards first, then one pass of learning.

    held-out accuracy of the untrained student
    for each stage, most masked first:  teacher masked at r ─► answers, verdicts, scores ─► store
    held-out accuracy of the unmasked teacher
    learner: stores in stage order ─► trained student
    held-out accuracy of the trained student ─► summary, report

What is finished stays finished: the same call goes on after the batches that are stored, or from the learner's last
checkpoint.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from masters_ray import data, report, schedule, store, weights
from masters_ray.actors.host import Role
from masters_ray.actors.replicas import Replicas
from masters_ray.config import Config
from masters_ray.evaluate import accuracy
from masters_ray.learner import LearnerJob, Pinned, StagePlan, fit
from masters_ray.pipeline import outcome, rollouts, stages
from masters_ray.pipeline.directory import RunDirectory, write_json
from masters_ray.pipeline.journal import Journal
from masters_ray.progress import say, track
from masters_ray.records import Rejected


def run(config: Config, directory: RunDirectory, config_file: str) -> Path:
    """The whole run; Ray must be started. Returns the report's path. Raises a MastersError when a stage fails."""
    with Journal(directory, config_file) as journal:
        plan, train, held_out = _generate(config, directory, journal)
        _learn(config, directory, journal, [stage.index for stage in plan])
        if not directory.evaluation("student_after").exists():
            with (
                journal.phase("evaluation after"),
                Replicas(stages.final_deployments(config, directory.student)) as replicas,
            ):
                _evaluate(config, directory, replicas, "student", held_out.problems, "student_after")
    outcome.write(config, directory, journal, train, held_out)
    return report.write(directory.root)


def generate(config: Config, directory: RunDirectory, config_file: str) -> list[store.Folder]:
    """The part of a run that needs a teacher; Ray must be started. Returns the stores. ``run`` goes on with them, here
    or where the directory is moved to."""
    with Journal(directory, config_file) as journal:
        plan, _, _ = _generate(config, directory, journal)
    return [directory.stage(stage.index) for stage in plan]


def _generate(
    config: Config, directory: RunDirectory, journal: Journal
) -> tuple[list[schedule.Stage], data.Loaded, data.Loaded]:
    with journal.phase("data"):
        train, held_out = stages.load(config, directory.data)
        _say_data(train, held_out)
        quarantine = directory.file("quarantine.jsonl")
        data.write_quarantine(quarantine, [*train.rejected, *held_out.rejected])
    plan = schedule.stages(config.schedule.max_ratio, config.schedule.step)
    shares = schedule.split(len(train.problems), len(plan), config.schedule.stage_data)
    rejected = _make_rollouts(
        config, directory, journal, train.problems, held_out.problems, list(zip(plan, shares, strict=True))
    )
    data.write_quarantine(quarantine, [*train.rejected, *held_out.rejected, *rejected])
    return plan, train, held_out


def _make_rollouts(
    config: Config,
    directory: RunDirectory,
    journal: Journal,
    train: data.Problems,
    held_out: data.Problems,
    work: list[tuple[schedule.Stage, range]],
) -> list[Rejected]:
    """Every stage's store, and the accuracies of the untrained student and the unmasked teacher."""
    todo = [(stage, share) for stage, share in work if store.read_manifest(directory.stage(stage.index)) is None]
    unmeasured = [name for name in ("student_before", "teacher") if not directory.evaluation(name).exists()]
    if todo or unmeasured:
        directory.rollouts.try_out()
        for folder in config.rollout.reuse:
            rollouts.stores_in(folder)
        student_digest = weights.digest(weights.locate(config.student.checkpoint))
        with journal.phase("start of the engines"):
            replicas = Replicas(stages.deployments(config, first_ratio=todo[0][0].ratio if todo else 0.0))
        directory.claim()
        with replicas:
            if "student_before" in unmeasured:
                with journal.phase("evaluation before"):
                    _evaluate(config, directory, replicas, "student", held_out, "student_before")
            for stage, share in todo:
                with journal.phase("rollouts"):
                    recipe = stages.recipe(config, stage, student_digest)
                    place, earlier = directory.stage(stage.index), _earlier(config, directory, stage)
                    rejected = rollouts.roll_out(recipe, train, share, replicas, place, earlier)
                    journal.reject(stage.index, rejected)
            if "teacher" in unmeasured:
                with journal.phase("evaluation before"):
                    rollouts.mask_teachers(replicas.pools["teacher"], 0.0)
                    _evaluate(config, directory, replicas, "teacher", held_out, "teacher")
    return journal.rejected([stage.index for stage, _ in work])


def _earlier(config: Config, directory: RunDirectory, stage: schedule.Stage) -> store.Lookup | None:
    """Rows with the answers of the student, who writes them once: of the first stage, if every stage has all data."""
    if stage.index == 0 or config.schedule.stage_data == "share":
        return None
    return store.Lookup([directory.stage(0)])


def _learn(config: Config, directory: RunDirectory, journal: Journal, indices: Sequence[int]) -> None:
    """The trained student, unless it is there already."""
    if directory.student.exists():
        return
    stores = [directory.stage(index) for index in indices]
    manifests = [store.read_manifest(folder) for folder in stores]
    plans = tuple(
        StagePlan(stage=manifest.made_by["stage"], ratio=manifest.made_by["ratio"], rows=manifest.rows)
        for manifest in manifests
        if manifest is not None
    )
    job = LearnerJob(
        checkpoint=stages.absolute(config.student.checkpoint),
        settings=config.learner,
        reward=config.reward,
        seed=config.run.seed,
        stages=plans,
        export_to=directory.student,
        adapters_to=directory.adapters,
        storage=directory.learner,
    )
    for folder in stores:
        store.check_digests(folder)
    say("the learner starts")
    with journal.phase("learner"), track("learner: optimizer steps", len(job.steps), journal.steps_done()) as advance:

        def on_news(news: Pinned) -> None:
            for note in news.notes:
                say(note)
            for new in news.steps:
                if journal.record(new):
                    advance(1, f"JSD {new.jsd:.4f}  reward {new.accuracy_reward:.2f}")
            journal.record_rewards(news.rewards)
            for skipped in news.skipped:
                advance(journal.record_skipped(skipped))
                say(f"step {skipped.step} is skipped: {skipped.reason}. Its rows are in {skipped.saved}")

        fit(job, stores, on_news)


def _evaluate(
    config: Config, directory: RunDirectory, replicas: Replicas, role: Role, held_out: data.Problems, name: str
) -> None:
    title = f"held-out accuracy of {name.replace('_', ' ')}"
    judge = replicas.pools["judge"] if config.evaluation.marked_by == "judge" else None
    marked = stages.evaluate(
        replicas.pools[role], judge, config.judge.rule, held_out, config.evaluation.max_tokens, title
    )
    write_json(directory.evaluation(name), [dataclasses.asdict(one) for one in marked])
    measured = accuracy(marked)
    say(f"{title}: {measured.value:.1%} ({measured.low:.1%} to {measured.high:.1%}, n = {measured.n})")


def _say_data(train: data.Loaded, held_out: data.Loaded) -> None:
    for name, loaded in (("training", train), ("held-out", held_out)):
        aside = f", {len(loaded.rejected)} rows set aside" if loaded.rejected else ""
        say(f"{len(loaded.problems)} {name} questions{aside}")
