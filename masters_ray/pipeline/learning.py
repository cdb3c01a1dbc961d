"""Runs the learner on a run's stores, with the rollouts of its online iterations beside it."""

import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import ray

from masters_ray import store
from masters_ray.errors import LearnerError, writing
from masters_ray.evaluate import accuracy
from masters_ray.families import parts_in
from masters_ray.learner import checkpoints
from masters_ray.learner.job import LearnerJob, Report, StagePlan, StepReport, Told
from masters_ray.learner.trainer import fit
from masters_ray.method import schedule
from masters_ray.method.schedule import Stage
from masters_ray.models import hf
from masters_ray.pipeline import course
from masters_ray.pipeline.context import RunContext
from masters_ray.pipeline.online import OnlineRollouts
from masters_ray.progress import Doing, say, track
from masters_ray.records import LeftOut
from masters_ray.replicas import placement
from masters_ray.replicas.spec import absolute
from masters_ray.weight_sync.broker import RolloutBroker


def learn(run: RunContext, plan: Sequence[Stage], export_to: Path) -> None:
    """Trains the student on the stages of ``plan``, from the learner's last checkpoint if there is one, and measures it
    on the way as evaluation.every says; does nothing if the run's trained student exists. Raises LearnerError, or the
    error that ended the rollouts of online iterations.

    The learner ends for each measurement and goes on from the checkpoint that it writes there, so that learner and
    engines never need devices at the same time, and a killed run repeats no step and no measurement."""
    directory, config = run.directory, run.config
    if directory.student.exists():
        _remove_all_but(set(), directory.students)
        return
    written = checkpoints.find(directory.learner / "checkpoints")
    begun = written[-1].step if written else 0
    last = max(one.number for one in run.iterations if one.stage == plan[-1].index)
    chooses = config.learner.keep == "best"
    for step in schedule.evaluated(run.iterations, config.evaluation.every, chooses):
        checkpoint = _student_at(run, step)
        passed = step < begun and not checkpoint.exists()
        if step > last or passed or run.course.is_measured(f"step-{step}", None):
            continue
        _learn_until(run, plan, step, checkpoint)
        with run.journal.phase("evaluation while learning"):
            run.measure_student(run.course, f"step-{step}", checkpoint)
        marks = course.measured(directory)
        run.journal.trackers.send({"accuracy/student": accuracy(marks[step]).value}, step)
        _remove_all_but({f"step-{course.best(marks)}"} if chooses else set(), directory.students)
    if chooses and export_to == directory.student:
        _keep_best(run)
    else:
        _learn_until(run, plan, last, export_to)


def _student_at(run: RunContext, step: int) -> Path:
    """Returns the path of the student after a step: with a refresh, that of its stage at a stage's end."""
    here, following = run.iterations[step - 1], run.iterations[step : step + 1]
    if run.refreshes and any(one.stage != here.stage for one in following):
        return run.directory.student_after(here.stage)
    return run.directory.students / f"step-{step}"


def _remove_all_but(kept: set[str], students: Path) -> None:
    for folder in students.glob("step-*/"):
        if folder.name.removesuffix("_adapters") not in kept:
            shutil.rmtree(folder)


def _keep_best(run: RunContext) -> None:
    """Makes the student of the best step the run's trained student."""
    step = course.best(course.measured(run.directory))
    found, student = _student_at(run, step), run.directory.student
    say(f"the student of step {step} is kept: the highest accuracy while it learned")
    for source in (*found.parent.glob(f"{found.name}_adapters"), found):
        target = student.with_name(source.name.replace(found.name, student.name))
        with writing(target, LearnerError), hf.whole_folder(target) as building:
            shutil.copytree(source, building)
    _remove_all_but(set(), run.directory.students)


def _learn_until(run: RunContext, plan: Sequence[Stage], step: int, export_to: Path) -> None:
    """Trains up to a step and exports the student; does nothing if ``export_to`` exists."""
    if export_to.exists():
        return
    job = _job(run, plan, step, export_to)
    done = run.journal.steps_done()
    following = (run.stages[one.stage] for one in job.iterations if one.online and done < one.number <= step)
    if (stage := next(following, None)) is not None:
        with run.journal.phase("start of the engines"):
            run.owner.online(stage.teacher, stage.ratio)
    words = f"; {len(job.online)} of its {len(job.steps)} iterations are online, weights by {job.transfer}"
    say(f"the learner starts{words if job.online else ''}")
    with ExitStack() as stack:
        stack.enter_context(run.journal.phase("learner"))
        advance = stack.enter_context(track("learner: optimizer steps", len(job.steps), done, "learner"))
        doing = stack.enter_context(Doing("the learner's workers start"))
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
            if isinstance(report, StepReport) or (isinstance(report, Told) and report.kind == "begun"):
                doing.then(report.text if isinstance(report, Told) else "")
            run.journal.take(report, advance)
            if isinstance(report, LeftOut):
                run.write_quarantine(plan)

        fit(job, [run.directory.stage(stage.index) for stage in plan], on_report, broker)


def _job(run: RunContext, plan: Sequence[Stage], step: int, export_to: Path) -> LearnerJob:
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
        until=step,
        export_to=export_to,
        storage=directory.learner,
    )
