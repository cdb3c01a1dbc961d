"""Checks, before a run's stores are reused, that they are undamaged, complete, and of the run's recipe."""

from collections.abc import Mapping

from masters_ray import store
from masters_ray.config import Config
from masters_ray.errors import MastersError, StoreError
from masters_ray.learner import checkpoints
from masters_ray.method.schedule import Stage
from masters_ray.pipeline import inputs, recipes
from masters_ray.pipeline.context import RunContext
from masters_ray.pipeline.run_dir import RunDirectory
from masters_ray.progress import say
from masters_ray.report.summary import read_summary


def wanted(run: RunContext, stage: Stage) -> list[int]:
    """Returns the positions of a stage whose rows are made before training: all but those that only online iterations
    answer."""
    online = {
        position
        for one in run.iterations
        if one.online and one.stage == stage.index and not run.config.rollout.spare_rows
        for position in one.positions
    }
    return [position for position in run.plan[stage.index][1] if position not in online]


def is_complete(run: RunContext, stage: Stage) -> bool:
    """Returns whether a stage's store is finished and undamaged; a writer mends a damaged one.

    Raises StoreError when a store has another recipe or too few questions, when a damaged store is another run's, and
    when the student has learned from rows that are damaged.
    """
    folder = run.directory.stage(stage.index)
    if not folder.has(store.MANIFEST):
        return False
    other = store.difference(folder, recipes.of_stage(run, stage).settings)
    told = f"{folder}: its rows were made by something else ({other})."
    if run.directory.student.exists():
        if other:
            say(f"{told} The run is finished with the student that has learned from them")
        return True
    survey = store.survey(folder)
    if other and store.KEY not in survey.broken:
        raise StoreError(f"{told} {store.OTHER_RECIPE}")
    if survey.broken:
        _refuse_to_mend(run, stage, survey.broken)
        return False
    asked = {position for account in survey.accounts.values() for position in account.asked}
    if missing := set(wanted(run, stage)) - asked:
        raise StoreError(
            f"{folder}: finished without {len(missing)} questions of its stage, by a larger rollout.online_fraction or "
            f"another learner.groups_per_step. {store.OTHER_RECIPE}"
        )
    return True


def _refuse_to_mend(run: RunContext, stage: Stage, broken: Mapping[str, str]) -> None:
    """Raises StoreError when a damaged store is another run's, or when the student has learned from its rows."""
    directory, told = run.directory, next(iter(broken.values()))
    learned = _learned_until(run, stage)
    if any(name.startswith(store.SHARD) and store.first_position(name) < learned for name in broken):
        raise StoreError(
            f"{told}. The student has learned from these rows already. Put back what was there, or choose another "
            f"run.dir; to learn anew, delete all in {directory.root} but rollouts, evaluation, settings.json and "
            "journal.json."
        )
    if (owner := directory.owner_of_rollouts) is not None:
        raise StoreError(f"{told}. It is the run's in {owner}: mend it there.")


def _learned_until(run: RunContext, stage: Stage) -> int:
    """Returns the stage's first position that the last checkpoint has not learned from; learning resumes there."""
    part = run.plan[stage.index][1]
    if run.directory.student_after(stage.index).exists():
        return part.stop
    found = checkpoints.find(run.directory.learner / "checkpoints")
    step = found[-1].step if found else 0
    seen = [one for one in run.iterations if one.stage == stage.index and one.number <= step]
    return max((one.positions.stop for one in seen), default=part.start)


def changed_since(config: Config, directory: RunDirectory) -> list[str]:
    """Returns a remark for each split of a finished run whose data have changed since, or cannot be loaded."""
    made = read_summary(directory.root)
    made_of = {"train": made.train.digest, "held_out": made.held_out.digest}
    remedies = {
        "train": "to learn from them, choose another run.dir",
        "held_out": f"to measure on them, delete {directory.file('summary.json')} and call again",
    }
    try:
        loaded = dict(zip(remedies, inputs.load(config, directory.data), strict=True))
    except MastersError as error:
        return [f"its data are not what they were: {error}"]
    return [
        f"its {name.replace('_', '-')} questions have changed since; {remedy}"
        for name, remedy in remedies.items()
        if made_of[name] != inputs.digest_of(loaded[name])
    ]
