"""One stage's rollouts: its questions through the replicas into a store, whatever dies on the way."""

from __future__ import annotations

import dataclasses
import threading
import time
from pathlib import Path
from typing import Any

from masters_ray import store
from masters_ray.actors.pool import Pool
from masters_ray.actors.replicas import Replicas
from masters_ray.errors import CheckpointError, ReplicaLostError, StoreError
from masters_ray.masks import MaskReport
from masters_ray.pipeline.groups import Batch, GroupMaker, Made, Recipe
from masters_ray.pipeline.tally import Tally
from masters_ray.pipeline.threads import threads
from masters_ray.progress import say, track
from masters_ray.records import Problem, Rejected

_BATCHES_IN_FLIGHT = 2
"""For each call that finds a place on a replica: one is worked on while another waits for its turn elsewhere."""
_TRIES_TOGETHER = 2
_TRIES_ALONE = 3


def mask_teachers(pool: Pool, ratio: float) -> MaskReport:
    """Every teacher replica at ``ratio``; all must report the same weights."""
    reports = pool.mask(ratio)
    if any(report != reports[0] for report in reports):
        raise CheckpointError(
            f"teacher replicas hold different weights: {reports}. Is the checkpoint the same on every node?"
        )
    return reports[0]


def roll_out(recipe: Recipe, problems: Batch, pools: Replicas, folder: Path) -> list[Rejected]:
    """Make one stage's groups and its store in ``folder``, or go on with it.

    Batches are worked on several at a time; each is stored as a shard as soon as it is finished, and not made again.
    A batch whose replica died is taken once more, and then, when nothing else is under way, question by question; a
    question on which replicas die three times is set aside. Returns all questions set aside: those, those that an
    engine refused, and those of which the judge could read fewer than two answers.
    """
    report = mask_teachers(pools.pools["teacher"], recipe.stage.ratio)
    work = _Work(recipe, store.Writer(folder, recipe.key(report)), GroupMaker(recipe, pools, report.digest))
    missing = unasked(problems, work.writer.asked, recipe.rollout.batch_rows)
    title = f"stage {recipe.stage.index}: rollouts at mask ratio {recipe.stage.ratio:g}"
    in_flight = _BATCHES_IN_FLIGHT * sum(pool.most_calls_at_once for pool in pools.pools.values())
    with track(title, len(problems), len(work.writer.asked)) as advance:
        with threads(in_flight) as each:
            for batch in each(work.together, missing):
                if batch not in work.suspects:
                    advance(len(batch), work.tally.note())
        for row in (row for batch in work.suspects for row in batch):
            work.alone(row)
            advance(1, work.tally.note())
    work.writer.finish(dataclasses.asdict(work.tally.outcome(recipe.stage, report, work.seconds())))
    return work.writer.rejected


def unasked(problems: Batch, asked: dict[int, str], size: int) -> list[Batch]:
    """Batches of at most ``size`` neighbours that are not among ``asked`` (position → digest).

    A batch never reaches over a question that was asked, so that shards, sorted by their first position, hold rows in
    order. Raises StoreError when another question was asked at a position.
    """
    batches: list[list[tuple[int, Problem]]] = []
    neighbours = False
    for position, problem in problems:
        if position in asked:
            if asked[position] != problem.digest:
                raise StoreError(
                    f"question {problem.id}: another one was asked at its place (position {position}) when the store "
                    "was begun. Did the data change? Set it back, or choose another run.dir."
                )
            neighbours = False
            continue
        if not neighbours or len(batches[-1]) == size:
            batches.append([])
        batches[-1].append((position, problem))
        neighbours = True
    return list(batches)


class _Work:
    """Batches that are made and stored by several threads, and what they add up to."""

    def __init__(self, recipe: Recipe, writer: store.Writer, maker: GroupMaker) -> None:
        self.writer = writer
        self.suspects: list[Batch] = []
        """Batches on which replicas died."""
        self.tally = Tally.total(account.noted["tally"] for account in writer.accounts.values())
        self._maker = maker
        self._lock = threading.Lock()
        self._call = time.time()
        self._began = time.monotonic()

    def together(self, batch: Batch) -> None:
        """Make and store a batch, or put it among the suspects."""
        for _ in range(_TRIES_TOGETHER):
            try:
                self._store(batch, self._maker.make(batch))
            except ReplicaLostError as error:
                say(f"questions {batch[0][1].id} to {batch[-1][1].id} are taken again: {error}")
            else:
                return
        with self._lock:
            self.suspects.append(batch)

    def alone(self, row: tuple[int, Problem]) -> None:
        """Make and store one question, or set it aside."""
        position, problem = row
        for _ in range(_TRIES_ALONE):
            try:
                self._store([row], self._maker.make([row]))
            except ReplicaLostError as error:
                told = str(error)
            else:
                return
        reason = f"a replica died {_TRIES_ALONE} times in a row on this question: {told}"
        rejected = {position: Rejected(row=problem.id, reason=reason)}
        self._store([row], Made(groups=[], rejected=rejected, tally=Tally()))

    def seconds(self) -> float:
        """How long the stage was worked on, by this call and earlier ones."""
        calls: dict[float, float] = {}
        for account in self.writer.accounts.values():
            call, seconds = account.noted["call"], account.noted["seconds"]
            calls[call] = max(calls.get(call, 0.0), seconds)
        return sum(calls.values())

    def _store(self, batch: Batch, made: Made) -> None:
        noted: dict[str, Any] = {"tally": dataclasses.asdict(made.tally)}
        noted |= {"call": self._call, "seconds": time.monotonic() - self._began}
        asked = {position: problem.digest for position, problem in batch}
        self.writer.write(made.groups, store.Account(asked=asked, rejected=made.rejected, noted=noted))
        with self._lock:
            self.tally = self.tally + made.tally
