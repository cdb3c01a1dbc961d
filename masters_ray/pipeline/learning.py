"""Runs the learner on a run's stores, with the rollouts of its online iterations beside it."""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import ray

from masters_ray import store
from masters_ray.families import parts_in
from masters_ray.learner.job import LearnerJob, Report, StagePlan
from masters_ray.learner.trainer import fit
from masters_ray.method.schedule import Stage
from masters_ray.pipeline.context import RunContext
from masters_ray.pipeline.online import OnlineRollouts
from masters_ray.progress import say, track
from masters_ray.records import LeftOut
from masters_ray.replicas import placement
from masters_ray.replicas.spec import absolute
from masters_ray.weight_sync.broker import RolloutBroker


def learn(run: RunContext, plan: Sequence[Stage], export_to: Path) -> None:
    """Trains the student on the stages of ``plan``, from the learner's last checkpoint if there is one; does nothing if
    ``export_to`` exists. Raises LearnerError, or the error that ended the rollouts of online iterations."""
    if export_to.exists():
        return
    job = _job(run, plan, export_to)
    done = run.journal.steps_done()
    following = (run.stages[one.stage] for one in job.iterations if one.online and one.number > done)
    if (stage := next(following, None)) is not None:
        with run.journal.phase("start of the engines"):
            run.owner.online(stage.teacher, stage.ratio)
    words = f"; {len(job.online)} of its {len(job.steps)} iterations are online, weights by {job.transfer}"
    say(f"the learner starts{words if job.online else ''}")
    with ExitStack() as stack:
        stack.enter_context(run.journal.phase("learner"))
        advance = stack.enter_context(track("learner: optimizer steps", len(job.steps), done))
        broker = None
        if job.online:
            run.owner.give_way()
            run.journal.note("placement", "turns" if job.turns else "beside")
            # Every worker, every replica and the rollouts may block in a call while the actor answers the others.
            places = job.settings.workers + run.config.student.replicas + 8
            actor = ray.remote(RolloutBroker).options(num_cpus=0, max_concurrency=places)
            turns_of = job.settings.workers if job.turns else None
            broker = actor.remote(job.online, job.max_staleness, run.config.rollout.max_wait_seconds, turns_of)
            stack.callback(ray.kill, broker)
            stack.enter_context(OnlineRollouts(run, broker))

        def on_report(report: Report) -> None:
            run.journal.take(report, advance)
            if isinstance(report, LeftOut):
                run.write_quarantine(plan)

        fit(job, [run.directory.stage(stage.index) for stage in plan], on_report, broker)


def _job(run: RunContext, plan: Sequence[Stage], export_to: Path) -> LearnerJob:
    config, directory, turns = run.config, run.directory, run.owner.turns
    parts = []
    for stage in plan:
        manifest = store.read_manifest(directory.stage(stage.index))
        assert manifest is not None  # its rollouts are made before the student learns from them
        teacher = config.of_teacher(stage.teacher).teacher
        parts.append(
            StagePlan(
                stage=stage.index,
                ratio=stage.ratio,
                rows=manifest.rows,
                teacher=absolute(teacher.checkpoint),
                masked=tuple(parts_in(teacher.mask)),
                teacher_digest=manifest.made_by["teacher_digest"],
            )
        )
    indices = {stage.index for stage in plan}
    return LearnerJob(
        checkpoint=absolute(config.student.checkpoint),
        settings=config.learner,
        reward=config.reward,
        seed=config.run.seed,
        stages=tuple(parts),
        iterations=tuple(one for one in run.iterations if one.stage in indices),
        max_staleness=config.rollout.max_staleness,
        engine_dtype=config.student.engine.dtype,
        max_set_aside_share=config.rollout.max_set_aside_share,
        transfer=placement.transfer(config, turns),
        turns=turns is not None,
        export_to=export_to,
        adapters_to=directory.adapters,
        storage=directory.learner,
    )
