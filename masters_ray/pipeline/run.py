"""The Masters method, from a configuration to a distilled student.

    held-out accuracy of the untrained student
    for each stage, most masked first:  teacher masked at r ─► answers, verdicts, scores ─► store
    held-out accuracy of the unmasked teacher
    learner: stores in stage order, online iterations answered meanwhile ─► trained student
    held-out accuracy of the trained student ─► summary, report

With rollout.student_refresh=stage the learner runs after every stage, and the trained student answers in the next.

Finished work is kept: the same call resumes after the stored batches, or from the learner's last checkpoint.
"""

import itertools
from collections.abc import Sequence
from contextlib import closing
from functools import partial
from pathlib import Path

from masters_ray import report, store
from masters_ray.config import Config
from masters_ray.errors import Complaint, ConfigError
from masters_ray.method import schedule
from masters_ray.models import weights
from masters_ray.pipeline import learning, online, outcome, recipes, rollouts
from masters_ray.pipeline.context import ReplicaOwner, RunContext
from masters_ray.pipeline.journal import Journal
from masters_ray.pipeline.run_dir import RunDirectory
from masters_ray.progress import say
from masters_ray.replicas import processes
from masters_ray.replicas.placement import Turns
from masters_ray.replicas.spec import specs

Block = Sequence[schedule.Stage]  # stages that the same set of replicas makes


def run(config: Config, directory: RunDirectory, config_file: str, turns: Turns | None = None) -> Path:
    """Executes the whole run; Ray must be started. Returns the report's path. Raises a MastersError when a stage fails.

    turns: the node on which learner and rollouts of online iterations take turns; None: they run at the same time."""
    if turns is not None:
        say(f"the learner and the rollouts take turns on {turns}: replicas sleep while the student learns")
    with Journal(directory, config_file) as journal, closing(ReplicaOwner(config, turns)) as owner:
        context = RunContext(config, directory, journal, owner)
        make_rollouts(context, go_on_online=context.online)
        learning.learn(context, context.stages, directory.student)
        measure_trained(context)
    outcome.write(context)  # only now does the journal hold the whole wall time
    written = report.write(directory.root)
    journal.finish(directory.root)
    return written


def generate(config: Config, directory: RunDirectory, config_file: str, *, measure: bool = True) -> list[store.Folder]:
    """Executes the part of a run that needs a teacher; Ray must be started. Returns the stores. ``run`` resumes from
    them, also after the directory was moved. measure: measure teacher and untrained student on the held-out questions,
    too. Raises ConfigError with rollout.student_refresh=stage."""
    if config.rollout.student_refresh == "stage":
        expected, remedy = "run, to make all rollouts before anything is learned", "Set it, or call masters-ray run."
        raise ConfigError([Complaint("rollout.student_refresh", expected, "stage", remedy)])
    with Journal(directory, config_file) as journal, closing(ReplicaOwner(config, None)) as owner:
        context = RunContext(config, directory, journal, owner)
        make_rollouts(context, measure)
    journal.finish()
    return [directory.stage(stage.index) for stage in context.stages]


def make_rollouts(run: RunContext, measure: bool = True, go_on_online: bool = False) -> None:
    """Makes every stage's store. measure: also the accuracies of the untrained student and the unmasked last teacher.
    go_on_online: keep the last replicas for online iterations."""
    by_teacher = itertools.groupby(run.stages, key=lambda stage: stage.index if run.refreshes else stage.teacher)
    blocks = [list(block) for _, block in by_teacher]
    for block in blocks:
        last = block is blocks[-1]
        due = {"student_before": block is blocks[0], "teacher": last}
        # With several teachers, online iterations do not begin with the last teacher's engines.
        keep = go_on_online and last and not run.config.growth
        _make_block(run, block, [name for name in due if measure and due[name]], keep)
        if run.refreshes and not last:
            index = block[-1].index
            learning.learn(run, run.stages[: index + 1], run.directory.student_after(index))
    run.write_quarantine(run.stages)


def _make_block(run: RunContext, block: Block, to_measure: Sequence[str], keep: bool) -> None:
    """Makes the stores of a block and the accuracies in ``to_measure`` that are missing. keep: start the replicas as
    those of online iterations, and leave them running."""
    directory, phase, first = run.directory, run.journal.phase, block[0]
    config = run.config.of_teacher(first.teacher)
    checkpoint = weights.locate(config.teacher.checkpoint)
    todo = [stage for stage in block if not recipes.is_complete(run, stage)]
    if "teacher" in to_measure and not directory.student.exists():
        run.measured.refuse_rows_of_another_teacher([directory.stage(stage.index) for stage in block], checkpoint)
    # A teacher's weights may be large: they are not read only to compare them with the weights that were measured.
    digests = {"student_before": run.reference}
    unmeasured = [name for name in to_measure if not run.measured.is_measured(name, digests.get(name))]
    if not todo and not unmeasured and (run.questions.known or not run.online):
        return
    directory.rollouts.try_writing()
    for place in config.rollout.reuse:
        rollouts.stores_in(place)  # raises when there are none
    ratio = todo[0].ratio if todo else 0.0
    with phase("checks"):
        run.proof.of_learner(run.train)
    with phase("start of the engines"):
        writer = recipes.writer(run, first)
        wanted = partial(specs, config, processes.for_rollouts(config, learned=writer is not None), ratio, writer)
        key = ("before training", first.index)
        replicas = run.owner.online(first.teacher, ratio) if keep else run.owner.get(key, wanted)
    directory.claim()
    pools = replicas.pools
    with phase("checks"):
        run.proof.of_engines(config, pools, ratio)
    if "student_before" in unmeasured:
        with phase("evaluation before"):
            run.measured.measure(pools, "student", "student_before", run.reference)
    if not run.questions.known:
        with phase("difficulty"):
            rollouts.mask_teachers(pools["teacher"], 0.0)
            run.questions.ask(pools["teacher"])
        # A finished store may hold other questions than the order that is known now.
        todo = [stage for stage in block if not recipes.is_complete(run, stage)]
    for stage in todo:
        with phase("rollouts"):
            recipe, earlier = recipes.of_stage(run, stage), recipes.earlier(run, stage)
            folder, positions = directory.stage(stage.index), recipes.positions_before_training(run, stage)
            rollouts.roll_out(recipe, run.questions, positions, replicas, folder, earlier)
    if "teacher" in unmeasured:
        with phase("evaluation before"):
            rollouts.mask_teachers(pools["teacher"], 0.0)
            run.measured.measure(pools, "teacher", "teacher", weights.digest(checkpoint))
    if not keep:
        run.owner.close()


def measure_trained(run: RunContext) -> None:
    """Closes the stores of online iterations and measures the trained student."""
    for stage in run.stages:
        online.finish(run.directory.online(stage.index), run.config.judge.rule)
    trained = weights.digest(run.directory.student)
    if not run.measured.is_measured("student_after", trained):
        with run.journal.phase("evaluation after"):
            run.measure_student(run.measured, "student_after", run.directory.student)
    run.write_quarantine(run.stages)
