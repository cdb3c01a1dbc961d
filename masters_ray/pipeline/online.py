"""Rollouts of online iterations: the student answers their questions with its current weights while it learns."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import pyarrow as pa
import ray
from ray.exceptions import RayError

from masters_ray import remarks, store
from masters_ray.config import Config, Rule
from masters_ray.errors import MastersError, ReplicaError, WeightsGoneError
from masters_ray.files import append_lines
from masters_ray.method import schedule
from masters_ray.method.masks import MaskReport
from masters_ray.method.schedule import Stage
from masters_ray.pipeline import rollouts
from masters_ray.pipeline.curriculum import Questions
from masters_ray.pipeline.groups import GroupMaker
from masters_ray.pipeline.owner import ReplicaOwner
from masters_ray.pipeline.parallel import in_parallel
from masters_ray.pipeline.recipes import OnlineWriter, Recipe, Recipes
from masters_ray.pipeline.run_dir import RunDirectory
from masters_ray.pipeline.tally import Limits
from masters_ray.progress import say
from masters_ray.records import AnswerTally, OnlineStep, Rejected
from masters_ray.replicas.processes import Role
from masters_ray.replicas.spawn import Replicas
from masters_ray.weight_sync.broker import Order

T = TypeVar("T")

_PATIENCE = 1.0
"""Seconds to wait for an order before the stop flag is read again."""
_SECONDS_TO_STOP = 60.0


@dataclass(frozen=True, kw_only=True)
class OnlinePlan:
    """The online iterations of a run and what answering them needs."""

    config: Config
    stages: Mapping[int, Stage]
    """Stages by index."""
    iterations: Mapping[int, schedule.Iteration]
    """Online iterations by number."""
    questions: Questions
    recipes: Recipes


class OnlineRollouts:
    """Answers online iterations one after the other, on its own thread, in the order in which a broker asks for them.

    Stores rows in the run's ``online`` directory. When the learner returns to an iteration, its rows are reused if each
    was written by a version of the student from this learner's history. Replicas that die are replaced and get the
    current weights before their first call.

    In turns, an order comes when the learner waits, and rows are delivered when the replicas sleep again. An order that
    is no longer wanted is dropped between two batches.
    """

    def __init__(self, plan: OnlinePlan, directory: RunDirectory, broker: Any, owner: ReplicaOwner) -> None:
        """broker: a RolloutBroker actor. owner: of the replicas, which are closed when the block is left."""
        self._plan, self._directory, self._owner = plan, directory, owner
        self.broker = broker
        self._tallies: dict[int, AnswerTally] = dict.fromkeys(plan.stages, AnswerTally())
        self._limits = {index: self._limits_of(index) for index in plan.stages}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="online rollouts", daemon=True)
        self._stores: dict[int, _OnlineStore] = {}
        """Stores by index of their stage."""
        self.error: BaseException | None = None
        """The error that ended the rollouts, if any."""

    def __enter__(self) -> OnlineRollouts:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stops the replicas and drops their calls in progress. Raises ReplicaError when the thread does not end."""
        self._stopping.set()
        self._owner.close()
        self._thread.join(_SECONDS_TO_STOP)
        if self._thread.is_alive():
            raise ReplicaError(
                f"rollouts of online iterations did not end in {_SECONDS_TO_STOP:g} s after they were stopped. What is "
                "stored stays: look for processes that are left, end them, and call again."
            )

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                order: Order | None = ray.get(self.broker.next_order.remote(_PATIENCE))
                if order is not None and not self._stopping.is_set():
                    rows = self._try(order)
                    self._owner.give_way()
                    ray.get(self.broker.deliver.remote(order, rows))
        except BaseException as error:  # noqa: BLE001 - raised by the driver, which waits for the learner
            if self._stopping.is_set():
                return
            self.error = error
            told = str(error) if isinstance(error, MastersError) else f"{type(error).__name__}: {error}"
            try:
                ray.get(self.broker.fail.remote(f"rollouts of online iterations stopped: {told}"))
            except RayError as gone:
                say(f"the learner could not be told that rollouts stopped: {gone}")
        finally:
            self._owner.close()

    def _try(self, order: Order) -> pa.Table | None:
        """As ``_answer``; returns None as well when the weights of the order are lost with their learner."""
        try:
            return self._answer(order)
        except WeightsGoneError as gone:
            say(f"iteration {order.iteration} is answered again when the learner goes on: {gone}")
            return None

    def _answer(self, order: Order) -> pa.Table | None:
        """Returns the rows of an iteration, made or found; None when the order is no longer wanted."""
        iteration = self._plan.iterations[order.iteration]
        stage = self._plan.stages[iteration.stage]
        replicas = self._owner.online(stage.teacher, stage.ratio)
        if self._stopping.is_set():
            return None
        began = time.monotonic()
        report = rollouts.mask_teachers(replicas.pools["teacher"], stage.ratio)
        recipe = self._plan.recipes.of(
            stage, OnlineWriter(iteration=order.iteration, version=order.weights.version, digest=order.weights.digest)
        )
        if stage.index not in self._stores:
            folder = self._directory.online(stage.index)
            self._stores[stage.index] = _OnlineStore(folder, recipe.key(report), self._plan.questions)
        stored = self._stores[stage.index]
        if (found := stored.good_for(iteration, order)) is not None:
            return found
        writer = stored.cleared(iteration)
        following: tuple[Role, ...] = ("student", "judge") if self._plan.config.judge.follows_student else ("student",)
        for role in following:
            replicas.pools[role].hold(order.weights)
        return self._make(order, iteration, recipe, report, writer, replicas, began)

    def _make(
        self,
        order: Order,
        iteration: schedule.Iteration,
        recipe: Recipe,
        report: MaskReport,
        writer: store.Writer,
        replicas: Replicas,
        began: float,
    ) -> pa.Table | None:
        loaded = time.monotonic() - began
        left = threading.Event()

        def wanted(items: Iterator[T]) -> Iterator[T]:
            for item in items:
                if self._owner.turns is not None and not ray.get(self.broker.wanted.remote(order)):
                    left.set()
                    return
                yield item

        tables: list[pa.Table] = []
        maker = GroupMaker(recipe, replicas, report.digest)
        work = rollouts.StageWork(recipe, writer, maker, on_stored=tables.append)
        todo = rollouts.unasked(self._plan.questions, iteration.positions, set(), recipe.rollout.batch_rows)
        for _ in in_parallel(work.together, wanted(todo), rollouts.calls_at_once(replicas)):
            pass
        for row in wanted(row for batch in work.suspects for row in batch):
            work.alone(row)
        if left.is_set():
            return None
        rows = pa.concat_tables(tables).sort_by("position")
        index = recipe.stage.index
        self._tallies[index] = self._tallies[index] + work.tally
        self._limits[index].look(work.newly_rejected(), self._tallies[index])
        step = OnlineStep(
            step=order.iteration,
            stage=index,
            version=order.weights.version,
            ages=[order.iteration - 1 - version for version in rows["version"].to_pylist()],
            rejected=len(work.rejected),
            seconds=time.monotonic() - began,
            publish_seconds=order.weights.seconds,
            load_seconds=loaded,
            calls=maker.clock.read(),
        )
        append_lines(self._directory.file("online.jsonl"), [dataclasses.asdict(step)])
        return rows

    def _limits_of(self, stage: int) -> Limits:
        questions = sum(len(one.positions) for one in self._plan.iterations.values() if one.stage == stage)
        return Limits(self._plan.config.rollout, questions, str(self._directory.online(stage)))


class _OnlineStore:
    """The store of a stage's online iterations."""

    def __init__(self, folder: store.Folder, key: dict[str, Any], questions: Questions) -> None:
        self._folder, self._questions = folder, questions
        self._writer = store.Writer(folder, key)

    def good_for(self, iteration: schedule.Iteration, order: Order) -> pa.Table | None:
        """Returns the iteration's rows from an earlier call, or from before workers were lost, if all of its questions
        were asked as they are now and each writer is the student of this order or an earlier version of it that the
        order lists; else None."""
        shards = store.read_accounts(self._folder, iteration.positions)
        asked = {position: digest for account in shards.values() for position, digest in account.asked.items()}
        if asked != {position: self._questions.digest(position) for position in iteration.positions}:
            return None
        rows = pa.concat_tables([store.read_shard(self._folder, name) for name in shards])
        written = zip(rows["student_digest"].to_pylist(), rows["version"].to_pylist(), strict=True)
        known = all(digest in (order.weights.digest, order.students.get(version)) for digest, version in written)
        return rows if known else None

    def cleared(self, iteration: schedule.Iteration) -> store.Writer:
        """Deletes the iteration's rows and returns the writer for new rows."""
        self._writer.discard(store.read_accounts(self._folder, iteration.positions))
        return self._writer


def finish(folder: store.Folder, rule: Rule) -> None:
    """Closes the store of a stage's online iterations after training, unless it is empty or closed, and prints remarks.
    rule: the rule that the judges are compared with."""
    accounts = store.read_accounts(folder)
    if not accounts or folder.has(store.MANIFEST):
        return
    total = AnswerTally.total(account.noted["tally"] for account in accounts.values())
    store.Writer(folder, store.read_key(folder)).finish(dataclasses.asdict(total))
    for remark in remarks.of(str(folder), total, rule):
        say(remark)


def rejected_in(folders: Sequence[store.Folder]) -> list[Rejected]:
    """Returns the questions of online iterations that have no group."""
    return [
        row
        for folder in folders
        for account in store.read_accounts(folder).values()
        for row in account.rejected.values()
    ]
