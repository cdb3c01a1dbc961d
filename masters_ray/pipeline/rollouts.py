"""Makes the rollouts of a stage: its questions pass through the replicas into a store, even if replicas die."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence, Set
from typing import Any

import pyarrow as pa

from masters_ray import remarks, store
from masters_ray.errors import CheckpointError, ReplicaLostError, StoreError
from masters_ray.method.masks import MaskReport
from masters_ray.pipeline.contents import misplaced
from masters_ray.pipeline.curriculum import Questions
from masters_ray.pipeline.groups import Batch, GroupMaker, MadeBatch
from masters_ray.pipeline.parallel import map_unordered
from masters_ray.pipeline.recipes import Earlier, Recipe
from masters_ray.pipeline.tally import Limits, tally_of_stored
from masters_ray.progress import say, track
from masters_ray.records import AnswerTally, Problem, Rejected, StageOutcome
from masters_ray.replicas.pool import Pool
from masters_ray.replicas.spawn import Replicas

_TRIES_TOGETHER = 2
_TRIES_ALONE = 3


def mask_teachers(pool: Pool, ratio: float) -> MaskReport:
    """Masks every teacher replica at ``ratio``. Raises CheckpointError when they report different weights."""
    reports = pool.mask(ratio)
    if any(report != reports[0] for report in reports):
        raise CheckpointError(
            f"teacher replicas hold different weights: {reports}. Is the checkpoint the same on every node?"
        )
    return reports[0]


def roll_out(
    recipe: Recipe,
    questions: Questions,
    positions: range,
    replicas: Replicas,
    folder: store.Where,
    earlier: Earlier | None = None,
    left_out: Set[int] = frozenset(),
) -> list[Rejected]:
    """Makes the rows of the questions at ``positions`` without ``left_out`` and stores them in ``folder``, or resumes.

    Several batches are made in parallel; each is stored as a shard when it is finished, and not made again. A batch
    whose replica died is made once more, and then, after all other batches, question by question; a question on which
    replicas die three times is set aside. Rows of ``rollout.reuse`` with the same recipe are taken over, and student
    answers from ``earlier``. Returns all questions set aside: because replicas died, an engine refused, a picture is
    bad, or the judge could read fewer than two answers. Raises DataError when the stage passes its ``Limits``.
    """
    report = mask_teachers(replicas.pools["teacher"], recipe.stage.ratio)
    key = recipe.key(report)
    writer = store.Writer(folder, key)
    accounts = store.read_accounts(folder)
    if stale := misplaced(accounts, positions, questions):
        say(f"{folder}: {len(stale)} shards hold questions that changed or moved; rows of the others are taken over")
        writer.retire(stale)
    before = [account for name, account in accounts.items() if name not in stale]
    done = {position for account in before for position in account.asked} | left_out
    maker = GroupMaker(recipe, replicas, report.digest, earlier)
    work = StageWork(recipe, writer, maker, _reusable(recipe.rollout.reuse, key, folder), before)
    wanted = sum(position not in left_out for position in positions)
    limits = Limits(rollout=recipe.rollout, questions=wanted, folder=str(folder))
    title = f"stage {recipe.stage.index}: rollouts at mask ratio {recipe.stage.ratio:g}"
    limits.check(work.set_aside(), work.tally)
    with track(title, wanted, len(done.intersection(positions) - left_out)) as advance:
        todo = unasked(questions, positions, done, recipe.rollout.batch_rows)
        for batch, stored in map_unordered(work.together, todo, calls_at_once(replicas)):
            if stored:
                advance(len(batch), _note(work.tally))
            limits.check(work.set_aside(), work.tally)
        for row in (row for batch in work.suspects for row in batch):
            work.alone(row)
            advance(1, _note(work.tally))
        limits.check(work.set_aside(), work.tally, finished=True)
    outcome = StageOutcome(
        stage=recipe.stage.index,
        ratio=recipe.stage.ratio,
        sparsity=report.sparsity,
        masked=report.masked,
        unmasked=report.unmasked,
        teacher_digest=report.digest,
        seconds=work.seconds(),
        set_aside=dict(Counter(one.kind for one in work.set_aside())),
        **vars(work.tally),
    )
    writer.finish(dataclasses.asdict(outcome))
    for remark in remarks.of(f"stage {outcome.stage}", outcome, recipe.judging.settings.rule):
        say(remark)
    return [work.rejected[position] for position in sorted(work.rejected)]


def _note(tally: AnswerTally) -> str:
    """Formats a tally for the progress line."""
    cut = {source: f", {share:.0%} cut" for source, share in tally.cut_by_source.items() if share}
    rates = tally.accuracy_by_source.items()
    return "  ".join(f"{source} right {rate:.0%}{cut.get(source, '')}" for source, rate in rates)


def calls_at_once(replicas: Replicas) -> int:
    """Returns the batches to keep in progress: the places of all pools together, so that the busiest is never idle."""
    return sum(pool.most_calls_at_once for pool in replicas.pools.values())


def unasked(questions: Questions, positions: range, asked: Set[int], size: int) -> Iterator[Batch]:
    """Yields batches of at most ``size`` neighbouring questions that are not in ``asked``.

    A batch never spans a question that was asked, so that shards, sorted by their first position, hold rows in order.
    Example: positions 0 to 5, 2 asked, size 2: batches [0, 1], [3, 4], [5].
    """
    batch: list[int] = []
    for position in positions:
        if position not in asked:
            batch.append(position)
        if batch and (position in asked or len(batch) == size or position == positions[-1]):
            yield list(zip(batch, questions[batch[0] : batch[-1] + 1], strict=True))
            batch = []


def _reusable(folders: Sequence[str], key: dict[str, Any], own: store.Where) -> store.Lookup | None:
    """Returns the rows of other stores made by the same recipe, and of shards retired from the stage's own store."""
    wanted, opened = store.as_key(key), store.Folder(own)
    fitting = [one for folder in folders for one in stores_in(folder) if store.read_key(one) == wanted]
    retired = [opened / name for name in store.retired(opened)]
    if not fitting and not retired:
        return None
    found = store.Lookup([*fitting, *retired])
    say(f"{len(found)} rows made by the same recipe can be taken over from {', '.join(map(str, [*fitting, *retired]))}")
    return found


def stores_in(folder: str) -> list[store.Folder]:
    """Returns the stores in a directory of rollout.reuse. Raises StoreError when there are none."""
    opened = store.Folder(folder)
    stores = [opened / name for name in opened.folders() if (opened / name).has(store.KEY)]
    if not stores:
        raise StoreError(f"rollout.reuse: {folder} holds no store. A run's stores are in its rollouts directory.")
    return stores


class StageWork:
    """Makes and stores batches on several threads, and sums up their results."""

    def __init__(
        self,
        recipe: Recipe,
        writer: store.Writer,
        maker: GroupMaker,
        reusable: store.Lookup | None = None,
        before: Sequence[store.Account] = (),
    ) -> None:
        """reusable: rows to take over. before: accounts of shards that earlier calls stored."""
        self.suspects: list[Batch] = []
        """Batches on which replicas died."""
        self.tally = AnswerTally.total(account.noted["tally"] for account in before)
        self.rejected: dict[int, Rejected] = {}
        """Position → why the question is set aside, earlier calls included."""
        self._recipe, self._writer, self._maker, self._reusable = recipe, writer, maker, reusable
        self._lock = threading.Lock()
        calls: dict[float, float] = {}
        for account in before:
            call = account.noted["call"]
            calls[call] = max(calls.get(call, 0.0), account.noted["seconds"])
            self.rejected |= account.rejected
        self._seconds_before = sum(calls.values())
        self._call = time.time()
        self._began = time.monotonic()

    def set_aside(self) -> list[Rejected]:
        """Returns the questions set aside so far, earlier calls included."""
        with self._lock:
            return list(self.rejected.values())

    def together(self, batch: Batch) -> bool:
        """Makes and stores a batch, or adds it to the suspects. Returns whether it is stored."""
        for _ in range(_TRIES_TOGETHER):
            try:
                self._store(batch, self._made(batch))
            except ReplicaLostError as error:
                say(f"questions {batch[0][1].id} to {batch[-1][1].id} are taken again: {error}")
            else:
                return True
        with self._lock:
            self.suspects.append(batch)
        return False

    def alone(self, row: tuple[int, Problem]) -> None:
        """Makes and stores a single question, or sets it aside."""
        position, problem = row
        for _ in range(_TRIES_ALONE):
            try:
                self._store([row], self._made([row]))
            except ReplicaLostError as error:
                told = str(error)
            else:
                return
        reason = f"a replica died {_TRIES_ALONE} times in a row on this question: {told}"
        rejected = {position: Rejected(row=problem.id, reason=reason, kind="replica")}
        self._store([row], MadeBatch(rejected=rejected))

    def seconds(self) -> float:
        """Returns the seconds of work on the stage, in this call and earlier calls."""
        return self._seconds_before + time.monotonic() - self._began

    def _made(self, batch: Batch) -> MadeBatch:
        """Returns the batch's rows; takes over reusable rows and makes the others."""
        if self._reusable is None:
            return self._maker.make(batch)
        found = self._reusable.rows([problem.digest for _, problem in batch])
        taken = {
            position: store.moved(found[problem.digest], position, self._recipe.stage.index)
            for position, problem in batch
            if problem.digest in found
        }
        made = self._maker.make([row for row in batch if row[0] not in taken])
        if not taken:
            return made
        reused = pa.concat_tables(taken.values())
        return MadeBatch(
            rows=pa.concat_tables([made.rows, reused]).sort_by("position"),
            rejected=made.rejected,
            tally=made.tally + tally_of_stored(store.groups(reused), self._recipe.judging.settings),
        )

    def _store(self, batch: Batch, made: MadeBatch) -> None:
        noted: dict[str, Any] = {"tally": dataclasses.asdict(made.tally)}
        noted |= {"call": self._call, "seconds": time.monotonic() - self._began}
        asked = {position: problem.digest for position, problem in batch}
        self._writer.write(made.rows, store.Account(asked=asked, rejected=made.rejected, noted=noted))
        with self._lock:
            self.tally = self.tally + made.tally
            self.rejected |= made.rejected
