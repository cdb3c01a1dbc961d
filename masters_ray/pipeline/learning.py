"""Runs the learner on a run's stores, with the rollouts of its online iterations beside it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from masters_ray import store
from masters_ray.errors import LearnerError
from masters_ray.learner.job import LearnerJob, LearnerReport, StagePlan
from masters_ray.learner.trainer import broker_of, fit
from masters_ray.method.schedule import Stage
from masters_ray.models.vllm_engine import Mask
from masters_ray.pipeline.context import RunContext
from masters_ray.pipeline.online import OnlinePlan, OnlineRollouts
from masters_ray.progress import say, track
from masters_ray.replicas import placement
from masters_ray.replicas.spec import absolute


def learn(run: RunContext, plan: Sequence[Stage], export_to: Path) -> None:
    """Trains the student on the stages of ``plan``, from the learner's last checkpoint if there is one; does nothing if
    ``export_to`` exists. Raises LearnerError, or the error that ended the rollouts of online iterations."""
    if export_to.exists():
        return
    run.stores.check([stage.index for stage in plan])
    job = _job(run, plan, export_to)
    done = run.journal.steps_done()
    following = (run.stages[one.stage] for one in job.iterations if one.online and one.number > done)
    if (stage := next(following, None)) is not None:
        with run.journal.phase("start of the engines"):
            run.owner.online(stage.teacher, stage.ratio)
    words = f"; {len(job.online)} of its {len(job.steps)} iterations are online, weights by {job.transfer}"
    say(f"the learner starts{words if job.online else ''}")
    with (
        run.journal.phase("learner"),
        track("learner: optimizer steps", len(job.steps), done) as advance,
        _online_rollouts(run, job) as online,
    ):

        def on_news(news: LearnerReport) -> None:
            run.journal.take(news, advance)
            if news.left_out:
                run.write_quarantine(plan)

        stores = [run.directory.stage(stage.index) for stage in plan]
        try:
            fit(job, stores, on_news, online.broker if online else None)
        except LearnerError as error:
            if online and online.error:
                raise online.error from error
            raise
        if online and online.error:
            raise online.error


def _job(run: RunContext, plan: Sequence[Stage], export_to: Path) -> LearnerJob:
    config, directory, turns = run.config, run.directory, run.owner.turns
    parts = []
    for stage in plan:
        if (manifest := store.read_manifest(directory.stage(stage.index))) is not None:
            teacher = config.of_teacher(stage.teacher).teacher
            parts.append(
                StagePlan(
                    stage=stage.index,
                    ratio=stage.ratio,
                    rows=manifest.rows,
                    teacher=absolute(teacher.checkpoint),
                    masked=tuple(Mask(scope=teacher.mask, ratio=stage.ratio).parts),
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


@contextmanager
def _online_rollouts(run: RunContext, job: LearnerJob) -> Iterator[OnlineRollouts | None]:
    """Runs the rollouts of the job's online iterations while the block runs; yields None when there are none."""
    if not job.online:
        yield None
        return
    run.owner.give_way()
    run.journal.note("placement", "turns" if job.turns else "beside")
    plan = OnlinePlan(
        config=run.config,
        stages={stage.index: stage for stage in run.stages},
        iterations={one.number: one for one in job.iterations if one.online},
        questions=run.order.questions,
        recipes=run.recipes,
    )
    rollout, replicas = run.config.rollout, run.config.student.replicas
    with (
        broker_of(job, rollout.max_wait_seconds, replicas) as broker,
        OnlineRollouts(plan, run.directory, broker, run.owner) as online,
    ):
        yield online
