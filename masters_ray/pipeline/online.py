"""Rollouts of online iterations: the student answers their questions with its current weights while it learns."""

import dataclasses
import threading
import time
from collections import defaultdict
from typing import Any, Self

import pyarrow as pa
import ray
from ray.exceptions import RayError

from masters_ray import remarks, store
from masters_ray.config import Rule
from masters_ray.errors import LearnerError, MastersError, ReplicaError, WeightsGoneError
from masters_ray.files import append_lines
from masters_ray.pipeline import recipes, rollouts
from masters_ray.pipeline.context import RunContext
from masters_ray.pipeline.groups import GroupMaker
from masters_ray.pipeline.recipes import Recipe
from masters_ray.progress import warn
from masters_ray.records import AnswerTally, OnlineStep, Rejected
from masters_ray.replicas.processes import Role
from masters_ray.replicas.spawn import Replicas
from masters_ray.weight_sync.broker import Order

_PATIENCE = 1.0  # seconds to wait for an order before the stop flag is read again
_SECONDS_TO_STOP = 60.0


class OnlineRollouts:
    """Answers online iterations on its own thread, in the order in which a broker asks for them, and stores their rows.

    When the learner returns to an iteration, its rows are reused if a version of the student from this learner's
    history wrote them. In turns, an order comes when the learner waits, and rows are delivered when the replicas sleep
    again; an order that is no longer wanted is dropped between two batches.
    """

    def __init__(self, run: RunContext, broker: Any) -> None:
        """broker: a RolloutBroker actor. The run's replicas are closed when the block is left."""
        self._run, self._broker = run, broker
        self._iterations = {one.number: one for one in run.iterations if one.online}
        self._writers: dict[int, store.Writer] = {}  # index of a stage → the writer of its store
        self._tallies: defaultdict[int, AnswerTally] = defaultdict(AnswerTally)
        self._rejected: defaultdict[int, dict[int, Rejected]] = defaultdict(dict)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="online rollouts", daemon=True)
        self._error: BaseException | None = None  # the error that ended the rollouts, if any

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, _: object, error: BaseException | None, *__: object) -> None:
        """Stops the replicas. Raises the error that ended the rollouts; ReplicaError when the thread does not end."""
        self._stopping.set()
        self._run.owner.close()
        self._thread.join(_SECONDS_TO_STOP)
        if self._error is not None and isinstance(error, LearnerError | None):
            raise self._error from error or self._error.__cause__
        if self._thread.is_alive():
            raise ReplicaError(
                f"rollouts of online iterations did not end in {_SECONDS_TO_STOP:g} s after they were stopped. What is "
                "stored stays: look for processes that are left, end them, and call again."
            )

    def _serve(self) -> None:
        """Answers orders until the block is left. An error ends the learner's waiting."""
        try:
            while not self._stopping.is_set():
                order: Order | None = ray.get(self._broker.next_order.remote(_PATIENCE))
                if order is not None and not self._stopping.is_set():
                    rows = self._rows_for(order)
                    self._run.owner.give_way()
                    ray.get(self._broker.deliver.remote(order, rows))
        except BaseException as error:  # noqa: BLE001 - raised by the driver, which waits for the learner
            if self._stopping.is_set():
                return
            self._error = error
            told = str(error) if isinstance(error, MastersError) else f"{type(error).__name__}: {error}"
            try:
                ray.get(self._broker.fail.remote(f"rollouts of online iterations stopped: {told}"))
            except RayError as gone:
                warn(f"the learner could not be told that rollouts stopped: {gone}")
        finally:
            self._run.owner.close()

    def _rows_for(self, order: Order) -> pa.Table | None:
        """Returns the rows of an iteration, made or found; None when the order is no longer wanted, or its weights are
        lost with their learner."""
        stage = self._run.stages[self._iterations[order.iteration].stage]
        replicas = self._run.owner.online(stage.teacher, stage.ratio)
        if self._stopping.is_set():
            return None
        began = time.monotonic()
        report = rollouts.mask_teachers(replicas.pools["teacher"], stage.ratio)
        recipe = recipes.of_stage(self._run, stage, order)
        if stage.index not in self._writers:
            self._writers[stage.index] = store.Writer(self._run.directory.online(stage.index), recipe.key(report))
        if (found := self._reusable_rows(order)) is not None:
            return found
        try:
            self._make(order, recipe, GroupMaker(recipe, replicas, report.digest), replicas, began)
        except WeightsGoneError as gone:
            warn(f"iteration {order.iteration} is answered again when the learner goes on: {gone}")
            return None
        return self._reusable_rows(order)

    def _make(self, order: Order, recipe: Recipe, maker: GroupMaker, replicas: Replicas, began: float) -> None:
        """Stores the rows of an iteration, in place of other students' rows; stops when the order is not wanted."""
        iteration, index = self._iterations[order.iteration], recipe.stage.index
        folder, writer = self._run.directory.online(index), self._writers[index]
        writer.discard(store.read_accounts(folder, iteration.positions))
        roles: tuple[Role, ...] = ("student", "judge") if self._run.config.judge.follows_student else ("student",)
        for role in roles:
            replicas.pools[role].hold(order.weights)
        loaded = time.monotonic() - began

        def wanted(_: object) -> bool:
            return self._run.owner.turns is None or bool(ray.get(self._broker.wanted.remote(order)))

        work = rollouts.StageWork(recipe, writer, maker)
        for _ in work.make(self._run.questions, iteration.positions, replicas, wanted):
            pass
        if work.tally.rows + len(work.rejected) < len(iteration.positions):
            return
        self._tallies[index] += work.tally
        self._rejected[index] |= work.rejected
        questions = sum(len(one.positions) for one in self._iterations.values() if one.stage == index)
        rejected = list(self._rejected[index].values())
        rollouts.check_limits(recipe.rollout, questions, folder, rejected, self._tallies[index])
        step = OnlineStep(
            step=order.iteration,
            stage=index,
            version=order.weights.version,
            ages=[order.iteration - 1 - order.weights.version] * work.tally.rows,
            rejected=len(work.rejected),
            seconds=time.monotonic() - began,
            publish_seconds=order.weights.seconds,
            load_seconds=loaded,
            calls=maker.calls(),
        )
        append_lines(self._run.directory.file("online.jsonl"), [dataclasses.asdict(step)])

    def _reusable_rows(self, order: Order) -> pa.Table | None:
        """Returns the iteration's stored rows, if all of its questions were asked and each writer is the student of
        this order or an earlier version of it that the order lists; else None."""
        iteration = self._iterations[order.iteration]
        folder = self._run.directory.online(iteration.stage)
        shards = store.read_accounts(folder, iteration.positions)
        if {position for account in shards.values() for position in account.asked} != set(iteration.positions):
            return None
        rows = pa.concat_tables([store.read_shard(folder, name) for name in shards])
        written = zip(rows["student_digest"].to_pylist(), rows["version"].to_pylist(), strict=True)
        known = all(digest in (order.weights.digest, order.students.get(version)) for digest, version in written)
        return rows if known else None


def finish(folder: store.Folder, rule: Rule) -> None:
    """Closes the store of a stage's online iterations after training, unless it is empty or closed; prints remarks."""
    accounts = store.read_accounts(folder)
    if not accounts or folder.has(store.MANIFEST):
        return
    total = sum((AnswerTally(**account.noted["tally"]) for account in accounts.values()), AnswerTally())
    store.Writer(folder, store.read_key(folder)).finish(dataclasses.asdict(total))
    for remark in remarks.of(str(folder), total, rule):
        warn(remark)
