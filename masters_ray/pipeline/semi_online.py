"""Rollouts of online iterations, made while the student learns (METHOD 8, appendix F.2)."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import pyarrow as pa
import ray
from ray.exceptions import RayError

from masters_ray import data, remarks, schedule, store
from masters_ray.actors import deployments
from masters_ray.actors.host import Role
from masters_ray.actors.replicas import Deployment, Replicas
from masters_ray.config import Config, Rule
from masters_ray.errors import MastersError, ReplicaError, WeightsGoneError
from masters_ray.files import append_lines
from masters_ray.learner.exchange import Order
from masters_ray.masks import MaskReport
from masters_ray.pipeline import rollouts, stages
from masters_ray.pipeline.contents import say_damage
from masters_ray.pipeline.curriculum import Ordered
from masters_ray.pipeline.directory import RunDirectory
from masters_ray.pipeline.groups import GroupMaker, Online, Recipe
from masters_ray.pipeline.limits import Limits
from masters_ray.pipeline.tally import Tally
from masters_ray.pipeline.threads import at_once, threads
from masters_ray.pipeline.verdicts import Judging, Verdicts
from masters_ray.placement import Turns
from masters_ray.progress import say
from masters_ray.records import OnlineStep, Rejected

T = TypeVar("T")

_PATIENCE = 1.0
"""Seconds between two looks at whether to stop."""
_SECONDS_TO_STOP = 60.0


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What the online iterations of a run ask for."""

    config: Config
    stages: Mapping[int, schedule.Stage]
    iterations: Mapping[int, schedule.Iteration]
    """By number, the online ones."""
    questions: data.Problems | Ordered
    verdicts: Verdicts
    """The run's."""
    judging: Callable[[int], Judging]
    """A teacher's number → who judges its rollouts, the student before training as a judge."""
    reference: str
    """Digest of the student before training."""


class Engines:
    """The replicas of online iterations: those that made the rows before training go on, others are started. What is
    kept is closed when the block is left."""

    def __init__(self, config: Config, turns: Turns | None) -> None:
        """turns: where learner and rollouts take turns. Raises ConfigError when engines on one GPU are told to take
        more of its memory than there is."""
        self.turns = turns
        self._config = config
        self._kept: tuple[int, Replicas] | None = None
        """A teacher's number, and replicas with it that wait."""
        for teacher in range(len(config.schedules)) if turns is not None else ():
            self.deployments(teacher, 0.0)

    def deployments(self, teacher: int, ratio: float) -> list[Deployment]:
        """The processes with one of the run's teachers, masked at a ratio."""
        return deployments.online(self._config.of_teacher(teacher), ratio, self.turns)

    def keep(self, teacher: int, replicas: Replicas) -> None:
        """Replicas of ``deployments`` to go on with; whoever keeps them closes them."""
        self._kept = teacher, replicas

    def __enter__(self) -> Engines:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def prepare(self, stage: schedule.Stage | None) -> None:
        """Have replicas ready for the stage, if any, before the learner starts. Raises ReplicaError when they cannot
        start."""
        if stage is not None and (self._kept is None or self._kept[0] != stage.teacher):
            self._close()
            self.keep(stage.teacher, Replicas(self.deployments(stage.teacher, stage.ratio)))

    def _close(self) -> None:
        kept, self._kept = self._kept, None
        if kept is not None:
            kept[1].close()

    def give_way(self) -> None:
        """In turns, before the learner starts: what is kept sleeps. Raises ReplicaError when it cannot."""
        if self.turns is not None and self._kept is not None:
            send_to_sleep(self._kept[1])

    def of(self, teacher: int, ratio: float) -> Replicas:
        """Replicas with one of the run's teachers, those that are kept or new ones masked at a ratio. Raises
        ReplicaError when they cannot start."""
        if self._kept is not None and self._kept[0] == teacher:
            (_, replicas), self._kept = self._kept, None
            return replicas
        self._close()
        return Replicas(self.deployments(teacher, ratio))


def send_to_sleep(replicas: Replicas) -> None:
    """Return once all replicas have given up their GPUs' memory; nothing may be under way on them. Raises as
    ``Pool.sleep``."""
    at_once([pool.sleep for pool in replicas.pools.values()])


class OnlineRollouts:
    """Answers online iterations one after the other, on a thread of its own, as an exchange wants them.

    Their rows are stored in the run's ``online`` directory, and not made again when the learner comes back to an
    iteration, as long as the student that wrote them is one that this learner was. Replicas that die are replaced and
    get the current weights before their first call.

    In turns an order is given when the learner waits, and brought back when the replicas sleep again. One that is not
    wanted any more is left between two batches.
    """

    def __init__(
        self,
        asked: Asked,
        directory: RunDirectory,
        exchange: Any,
        start: Callable[[int, float], Replicas],
        *,
        turns: bool = False,
    ) -> None:
        """exchange: an Exchange actor. start: the replicas with one of the run's teachers, masked at a ratio. turns:
        learner and rollouts take turns."""
        self._asked, self._directory, self._start, self._turns = asked, directory, start, turns
        self.exchange = exchange
        self._tallies: dict[int, Tally] = dict.fromkeys(asked.stages, Tally())
        self._limits = {index: self._limits_of(index) for index in asked.stages}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="online rollouts", daemon=True)
        self._stores: dict[int, _Stored] = {}
        """By stage."""
        self._teacher: int | None = None
        self._replicas: Replicas | None = None
        self.error: BaseException | None = None
        """Why there are no more of them, if something went wrong."""

    def __enter__(self) -> OnlineRollouts:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the replicas; what they were doing is dropped."""
        self._stopping.set()
        if (replicas := self._replicas) is not None:
            replicas.close()
        self._thread.join(_SECONDS_TO_STOP)
        if self._thread.is_alive():
            raise ReplicaError(
                f"rollouts of online iterations did not end in {_SECONDS_TO_STOP:g} s after they were stopped. What is "
                "stored stays: look for processes that are left, end them, and call again."
            )

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                order: Order | None = ray.get(self.exchange.next_order.remote(_PATIENCE))
                if order is not None:
                    rows = self._try(order)
                    if self._turns and self._replicas is not None:
                        send_to_sleep(self._replicas)
                    ray.get(self.exchange.deliver.remote(order, rows))
        except BaseException as error:  # noqa: BLE001 - raised by the driver, which waits for the learner
            if self._stopping.is_set():
                return
            self.error = error
            told = str(error) if isinstance(error, MastersError) else f"{type(error).__name__}: {error}"
            try:
                ray.get(self.exchange.fail.remote(f"rollouts of online iterations stopped: {told}"))
            except RayError as gone:
                say(f"the learner could not be told that rollouts stopped: {gone}")
        finally:
            if self._replicas is not None:
                self._replicas.close()

    def _try(self, order: Order) -> pa.Table | None:
        """``_answer``; None as well when the weights that were to write are gone with their learner."""
        try:
            return self._answer(order)
        except WeightsGoneError as gone:
            say(f"iteration {order.iteration} is answered again when the learner goes on: {gone}")
            return None

    def _stage(self, number: int) -> schedule.Stage:
        return self._asked.stages[self._asked.iterations[number].stage]

    def _answer(self, order: Order) -> pa.Table | None:
        """The rows of an iteration, made or found; None: nobody waits for them any more."""
        iteration, stage = self._asked.iterations[order.iteration], self._stage(order.iteration)
        replicas = self._replicas_of(stage)
        began = time.monotonic()
        report = rollouts.mask_teachers(replicas.pools["teacher"], stage.ratio)
        config = self._asked.config.of_teacher(stage.teacher)
        judging = self._asked.judging(stage.teacher)
        if config.judge.follows_student:
            judging = stages.followed(judging, config, order.weights.digest)
        made = stages.recipe(config, stage, order.weights.digest, self._asked.reference, judging)
        online = Online(iteration=order.iteration, version=order.weights.version)
        recipe = dataclasses.replace(made, online=online)
        if stage.index not in self._stores:
            folder = self._directory.online(stage.index)
            self._stores[stage.index] = _Stored(folder, recipe.key(report), self._asked.questions)
        stored = self._stores[stage.index]
        if (found := stored.good_for(iteration, order)) is not None:
            return found
        writer = stored.cleared(iteration)
        following: tuple[Role, ...] = ("student", "judge") if config.judge.follows_student else ("student",)
        for role in following:
            replicas.pools[role].hold(order.weights)
        loaded = time.monotonic() - began
        return self._make(order, iteration, recipe, report, writer, replicas, began, loaded)

    def _make(
        self,
        order: Order,
        iteration: schedule.Iteration,
        recipe: Recipe,
        report: MaskReport,
        writer: store.Writer,
        replicas: Replicas,
        began: float,
        loaded: float,
    ) -> pa.Table | None:
        left = threading.Event()

        def wanted(items: Iterator[T]) -> Iterator[T]:
            for item in items:
                if self._turns and not ray.get(self.exchange.wanted.remote(order)):
                    left.set()
                    return
                yield item

        tables: list[pa.Table] = []
        maker = GroupMaker(recipe, replicas, report.digest, verdicts=self._asked.verdicts)
        work = rollouts.Work(recipe, writer, maker, on_stored=tables.append)
        todo = rollouts.unasked(self._asked.questions, iteration.positions, set(), recipe.rollout.batch_rows)
        with threads(sum(pool.most_calls_at_once for pool in replicas.pools.values())) as each:
            for _ in each(work.together, wanted(todo)):
                pass
        for row in wanted(row for batch in work.suspects for row in batch):
            work.alone(row)
        if left.is_set():
            return None
        rows = pa.concat_tables(tables).sort_by("position")
        index = recipe.stage.index
        self._tallies[index] = self._tallies[index] + work.tally
        self._limits[index].reject(work.rejected)
        self._limits[index].check(self._tallies[index])
        self._note(
            OnlineStep(
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
        )
        return rows

    def _note(self, step: OnlineStep) -> None:
        append_lines(self._directory.file("online.jsonl"), [dataclasses.asdict(step)])

    def _replicas_of(self, stage: schedule.Stage) -> Replicas:
        """Those of the stage's teacher, started when the first of its iterations comes."""
        if self._replicas is None or self._teacher != stage.teacher:
            if self._replicas is not None:
                self._replicas.close()
            self._replicas = self._start(stage.teacher, stage.ratio)
            self._teacher = stage.teacher
            if self._stopping.is_set():
                self._replicas.close()
        return self._replicas

    def _limits_of(self, stage: int) -> Limits:
        questions = sum(len(one.positions) for one in self._asked.iterations.values() if one.stage == stage)
        return Limits(self._asked.config.rollout, questions, str(self._directory.online(stage)))


class _Stored:
    """The store of a stage's online iterations."""

    def __init__(self, folder: store.Folder, key: dict[str, Any], questions: data.Problems | Ordered) -> None:
        self._folder, self._questions = folder, questions
        self._writer = store.Writer(folder, key)

    def good_for(self, iteration: schedule.Iteration, order: Order) -> pa.Table | None:
        """The iteration's rows from an earlier call or before workers were lost, if all of its questions were asked as
        they are now and every writer is a student that this learner was: the very one that is to write now, or one from
        before the learner went on."""
        shards = store.read_accounts(self._folder, iteration.positions)
        asked = {position: digest for account in shards.values() for position, digest in account.asked.items()}
        if asked != {position: self._questions.digest(position) for position in iteration.positions}:
            return None
        rows = pa.concat_tables([store.read_shard(self._folder, name) for name in shards])
        written = zip(rows["student_digest"].to_pylist(), rows["version"].to_pylist(), strict=True)
        known = all(digest in (order.weights.digest, order.students.get(version)) for digest, version in written)
        return rows if known else None

    def cleared(self, iteration: schedule.Iteration) -> store.Writer:
        """For writing the iteration's rows, in place of those that are there."""
        self._writer.discard(store.read_accounts(self._folder, iteration.positions))
        return self._writer


def finish(folder: store.Folder, rule: Rule) -> None:
    """Close the store of a stage's online iterations, if there is one that is open: nothing is learned from it any
    more. rule: what its judges are compared with."""
    accounts = store.read_accounts(folder, on_damage=say_damage)
    if not accounts or folder.has(store.MANIFEST):
        return
    total = Tally.total(account.noted["tally"] for account in accounts.values())
    store.Writer(folder, store.read_key(folder)).finish(dataclasses.asdict(total))
    for remark in remarks.of(str(folder), total, rule):
        say(remark)


def rejected_in(folders: Sequence[store.Folder]) -> list[Rejected]:
    """Questions of online iterations that have no group."""
    return [
        row
        for folder in folders
        for account in store.read_accounts(folder, on_damage=say_damage).values()
        for row in account.rejected.values()
    ]
