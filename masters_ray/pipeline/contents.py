"""Checks, before a run's stores are reused, that they are undamaged, complete, and of the run's recipe."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from masters_ray import store
from masters_ray.config import Config
from masters_ray.errors import DamagedError, MastersError, StoreError
from masters_ray.learner import checkpoints
from masters_ray.method import schedule
from masters_ray.method.schedule import Stage
from masters_ray.pipeline import inputs
from masters_ray.pipeline.recipes import Recipe
from masters_ray.pipeline.run_dir import RunDirectory
from masters_ray.progress import say
from masters_ray.report.summary import read_summary


class StageStores:
    """The stores that a run's stages make before training."""

    def __init__(self, config: Config, directory: RunDirectory, iterations: Sequence[schedule.Iteration]) -> None:
        self._directory, self._iterations = directory, iterations
        self._spare_rows = config.rollout.spare_rows

    def wanted(self, stage: Stage, part: range) -> list[int]:
        """Returns the positions in ``part`` whose rows are made before training: all but those that only online
        iterations answer."""
        online = [one for one in self._iterations if one.online and one.stage == stage.index and not self._spare_rows]
        return sorted(set(part).difference(*(one.positions for one in online)))

    def is_complete(self, recipe: Recipe, part: range) -> bool:
        """Returns whether the store of a recipe's stage is finished and undamaged. Reopens a finished store that is
        damaged: broken files are set aside, and only their rows are made again. part: positions of the stage.

        Raises StoreError when a store has another recipe or too few questions, when a damaged store is another run's,
        and when the student has learned from rows that are damaged.
        """
        stage, folder = recipe.stage, self._directory.stage(recipe.stage.index)
        if not folder.has(store.MANIFEST):
            return False
        other = other_recipe(folder, recipe.settings)
        told = f"{folder}: its rows were made by something else ({other})."
        if self._directory.student.exists():
            if other:
                say(f"{told} The run is finished with the student that has learned from them")
            return True
        survey = store.survey(folder)
        if other and store.KEY not in survey.broken:
            raise StoreError(f"{told} {store.OTHER_RECIPE}")
        if survey.broken:
            self._refuse_to_mend(stage, part, survey.broken)
            store.reopen(folder, survey.broken)
            return False
        asked = {position for account in survey.accounts.values() for position in account.asked}
        if missing := set(self.wanted(stage, part)) - asked:
            raise StoreError(
                f"{folder}: finished without {len(missing)} of the {len(part)} questions of its stage, by a larger "
                f"rollout.online_fraction or another learner.groups_per_step. {store.OTHER_RECIPE}"
            )
        return True

    def _refuse_to_mend(self, stage: Stage, part: range, broken: Mapping[str, str]) -> None:
        """Raises StoreError when a damaged store is another run's, or when the student has learned from its rows."""
        told = f"{self._directory.stage(stage.index)}: {next(iter(broken.values()))}."
        learned = self._learned_until(stage, part)
        if any(name.startswith(store.SHARD) and store.first_position(name) < learned for name in broken):
            raise StoreError(
                f"{told} The student has learned from these rows already. Put back what was there, or choose another "
                f"run.dir; to learn anew, delete all in {self._directory.root} but rollouts, evaluation, settings.json "
                "and journal.json."
            )
        if (owner := self._directory.owner_of_rollouts) is not None:
            raise StoreError(f"{told} It is the run's in {owner}: mend it there.")

    def _learned_until(self, stage: Stage, part: range) -> int:
        """Returns the stage's first position that the last checkpoint has not learned from; learning resumes there."""
        if self._directory.student_after(stage.index).exists():
            return part.stop
        found = checkpoints.find(self._directory.learner / "checkpoints")
        step = found[-1].step if found else 0
        seen = [one for one in self._iterations if one.stage == stage.index and one.number <= step]
        return max((one.positions.stop for one in seen), default=part.start)


def other_recipe(folder: store.Folder, settings: Mapping[str, Any]) -> str:
    """Describes how a store's key differs from ``settings`` (``Recipe.settings`` or a part of it); "" when it does not,
    or when there is no key that can be read, which a writer mends."""
    if not folder.has(store.KEY):
        return ""
    try:
        made = store.read_key(folder)
    except DamagedError:
        return ""
    return store.difference(made, json.loads(json.dumps(settings)))


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
        if made_of[name] != inputs.digest_of(loaded[name].problems)
    ]
