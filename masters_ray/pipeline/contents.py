"""Checks, before a run's stores are reused, that they are undamaged and hold the questions that the data hold now."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from masters_ray import store
from masters_ray.config import Config
from masters_ray.errors import DamagedError, MastersError, StoreError
from masters_ray.files import read_object
from masters_ray.learner import checkpoints
from masters_ray.method import schedule
from masters_ray.method.schedule import Stage
from masters_ray.pipeline import held_out, inputs
from masters_ray.pipeline.curriculum import QuestionOrder, Questions
from masters_ray.pipeline.run_dir import RunDirectory
from masters_ray.progress import say

_NAMED = 3
"""Maximum number of questions that a message names."""


class StageStores:
    """Compares the stores of a run's stages with the questions that the run would ask now."""

    def __init__(
        self,
        config: Config,
        directory: RunDirectory,
        plan: Sequence[tuple[Stage, range]],
        iterations: Sequence[schedule.Iteration],
        order: QuestionOrder,
    ) -> None:
        self._directory, self._iterations, self._order = directory, iterations, order
        self._folders = [place(stage.index) for stage, _ in plan for place in (directory.stage, directory.online)]
        self._spare_rows = config.rollout.spare_rows
        self._read: set[int] = set()
        """Indices of the stages whose files this call has read completely."""

    def left_out(self, stage: Stage) -> set[int]:
        """Returns the positions that only online iterations answer: no row is made for them before training."""
        if self._spare_rows:
            return set()
        online = [one for one in self._iterations if one.online and one.stage == stage.index]
        return {position for one in online for position in one.positions}

    def is_made(self, stage: Stage, part: range, settings: Mapping[str, Any]) -> bool:
        """Returns whether a stage's store is finished, undamaged, and holds the questions at ``part``. Reopens a store
        that is finished but broken or stale: broken files are set aside, and only missing rows are made again.

        settings: ``Recipe.settings`` of the stage. Raises StoreError when the student has learned from rows that would
        be made again, when a broken store is another run's, and when a store has another recipe or too few questions.
        """
        folder = self._directory.stage(stage.index)
        if not folder.has(store.MANIFEST):
            return False
        if self._directory.student.exists():
            return self._is_readable(folder, part)
        survey = store.survey(folder)
        self._read.add(stage.index)
        stale = self._misplaced(survey.accounts, part)
        self._refuse_what_was_learned(stage, part, survey, stale)
        if survey.broken or stale:
            if (owner := self._directory.owner_of_rollouts) is not None:
                raise StoreError(f"{folder}: {self._wrong(survey)}. It is the run's in {owner}: mend it there.")
            store.reopen(folder, survey.broken)
            return False
        if told := other_recipe(folder, settings):
            raise StoreError(
                f"{folder}: its rows were made by something else ({told}). Set it back, or choose another run.dir and "
                "rollout.store."
            )
        asked = {position for account in survey.accounts.values() for position in account.asked}
        if missing := set(part) - self.left_out(stage) - asked:
            raise StoreError(
                f"{folder}: a finished store without {len(missing)} of the {len(part)} questions of its stage. Did a "
                "run with a larger rollout.online_fraction make it? Name its directory in rollout.reuse and choose "
                "another rollout.store: its rows are taken over, and those that are missing are made. "
                "learner.groups_per_step decides as well which questions are online."
            )
        return True

    def check(self, stages: Sequence[int]) -> None:
        """Reads the stores that this call has not read yet, before learning. Raises DamagedError at a broken file."""
        for index in stages:
            if index not in self._read and (broken := store.survey(self._directory.stage(index)).broken):
                raise DamagedError(f"{next(iter(broken.values()))}. The same command makes it again.")

    def _is_readable(self, folder: store.Folder, part: range) -> bool:
        """Returns whether the manifest can be read; if not, reopens the store. For a run whose student is trained: its
        rows are not made again."""
        try:
            store.read_manifest(folder)
        except DamagedError as error:
            store.reopen(folder, {store.MANIFEST: str(error)})
            return False
        if self._misplaced(store.read_accounts(folder), part):
            say(f"{folder}: {self._changed()}. The run is finished with the questions as they were.")
        return True

    def _misplaced(self, accounts: Mapping[str, store.Account], part: range) -> dict[str, store.Account]:
        """As ``misplaced``; while the order is not known, a question may have any position."""
        return misplaced(accounts, part, self._order.questions) if self._order.known else self._gone(accounts)

    def _gone(self, accounts: Mapping[str, store.Account]) -> dict[str, store.Account]:
        """Returns the shards with questions that the data no longer hold."""
        now = self._order.digests
        return {name: one for name, one in accounts.items() if not now.issuperset(one.asked.values())}

    def _refuse_what_was_learned(
        self, stage: Stage, part: range, survey: store.Survey, stale: Mapping[str, store.Account]
    ) -> None:
        learned = self._learned_until(stage, part)
        lost = [name for name in survey.broken if name.startswith(store.SHARD) and store.first_position(name) < learned]
        online = store.read_accounts(self._directory.online(stage.index))
        others = self._misplaced(online, part)
        changed = [place for one in (*stale.values(), *others.values()) for place in one.asked if place < learned]
        if learned > part.start and (lost or changed):
            raise StoreError(
                f"{self._directory.stage(stage.index)}: {self._wrong(survey)}. The student has learned from these rows "
                "already. Put back what was there, or choose another run.dir; to learn anew, delete all in "
                f"{self._directory.root} but rollouts, evaluation, settings.json and journal.json: only what is not as "
                "it was is made again."
            )

    def _learned_until(self, stage: Stage, part: range) -> int:
        """Returns the stage's first position that the last checkpoint has not learned from; learning resumes there."""
        if self._directory.student_after(stage.index).exists():
            return part.stop
        found = checkpoints.find(self._directory.learner / "checkpoints")
        step = found[-1].step if found else 0
        seen = [one for one in self._iterations if one.stage == stage.index and one.number <= step]
        return max((one.positions.stop for one in seen), default=part.start)

    def _wrong(self, survey: store.Survey) -> str:
        return next(iter(survey.broken.values()), None) or self._changed()

    def _changed(self) -> str:
        """Describes how the data differ from the questions that were asked."""
        gone: dict[str, str] = {}
        for folder in self._folders:
            for name, account in self._gone(store.read_accounts(folder)).items():
                ids = _ids(folder, name, account)
                lost = {place: one for place, one in account.asked.items() if one not in self._order.digests}
                gone |= {digest: ids[place] for place, digest in lost.items()}
        if not gone:
            return "the data changed: the same questions have other places in their order"
        named = ", ".join(list(gone.values())[:_NAMED]) + (", …" if len(gone) > _NAMED else "")
        return f"the data changed: {len(gone)} of its questions are no longer there as they were asked ({named})"


def misplaced(accounts: Mapping[str, store.Account], part: range, questions: Questions) -> dict[str, store.Account]:
    """Returns the shards with a question whose position is outside ``part`` or holds another question now."""

    def stands(position: int, digest: str) -> bool:
        return position in part and questions.digest(position) == digest

    return {
        name: account
        for name, account in accounts.items()
        if not all(stands(position, digest) for position, digest in account.asked.items())
    }


def other_recipe(folder: store.Folder, settings: Mapping[str, Any]) -> str:
    """Describes how a store's key differs from ``settings`` (``Recipe.settings`` or a part of it); "" when equal.
    Settings that the key lacks count as equal. Raises StoreError when the key cannot be read."""
    made, wanted = store.read_key(folder), json.loads(json.dumps(settings))
    different = sorted(name for name in wanted if made.get(name, wanted[name]) != wanted[name])
    return "; ".join(f"{name}: {made[name]!r} there, {wanted[name]!r} now" for name in different)


def changed_since(config: Config, directory: RunDirectory) -> list[str]:
    """Returns a remark for each split of a finished run whose data have changed since, or cannot be loaded."""
    made_of = read_object(directory.file("summary.json")).get("data", {})
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
        if made_of.get(name, {}).get("digest") not in (None, held_out.digest_of(loaded[name].problems))
    ]


def _ids(folder: store.Folder, name: str, account: store.Account) -> dict[int, str]:
    """Returns position → id of a shard's questions."""
    rows = store.read_shard(folder, name)
    ids = dict(zip(rows["position"].to_pylist(), rows["id"].to_pylist(), strict=True))
    return ids | {place: one.row for place, one in account.rejected.items()}
