"""Makes the rollouts of a stage: its questions pass through the replicas into a store, even if replicas die."""

import dataclasses
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby, takewhile
from typing import Any

import pyarrow as pa

from masters_ray import remarks, store
from masters_ray.config import Rollout
from masters_ray.errors import CheckpointError, DataError, ReplicaLostError, StoreError
from masters_ray.method.masks import MaskReport
from masters_ray.pipeline.curriculum import Questions
from masters_ray.pipeline.groups import Batch, GroupMaker, MadeBatch
from masters_ray.pipeline.parallel import batches, map_unordered
from masters_ray.pipeline.recipes import OF_QUESTIONS, Recipe
from masters_ray.pipeline.tally import tally
from masters_ray.progress import Doing, say, track, warn
from masters_ray.records import AnswerTally, Rejected, StageOutcome
from masters_ray.replicas.pool import Pool
from masters_ray.replicas.spawn import Replicas

_TRIES_IN_BATCH = 2
_TRIES_SINGLE = 3
_ENOUGH_ANSWERS = 400  # number of answers from which on their shares are compared with the limits
_EXAMPLES = 5


def mask_teachers(pool: Pool, ratio: float) -> MaskReport:
    """Masks every teacher replica at ``ratio``. Raises CheckpointError when they report different weights."""
    with Doing(f"the teacher is masked at ratio {ratio:g}" if ratio else "the unmasked teacher is loaded"):
        reports = pool.mask(ratio)
    if any(report != reports[0] for report in reports):
        raise CheckpointError(
            f"teacher replicas hold different weights: {reports}. Is the checkpoint the same on every node?"
        )
    return reports[0]


def roll_out(
    recipe: Recipe,
    questions: Questions,
    positions: Sequence[int],
    replicas: Replicas,
    folder: store.Where,
    earlier: store.Lookup | None = None,
) -> None:
    """Makes the rows of the questions at ``positions`` (ascending) and stores them in ``folder``, or resumes.

    Several batches are made in parallel; each is stored as a shard when it is finished, and not made again. A batch
    whose replica died is made once more, and then, after all other batches, question by question; a question on which
    replicas die three times is set aside, as are those that an engine refuses, whose picture is bad, or of which the
    judge could read fewer than two answers. Rows of ``rollout.reuse`` with the same recipe are taken over, and student
    answers from ``earlier``. Raises DataError when the stage passes a limit of its ``rollout``.
    """
    report = mask_teachers(replicas.pools["teacher"], recipe.stage.ratio)
    writer = store.Writer(folder, recipe.key(report))
    before = writer.accounts
    asked = {position for account in before for position in account.asked}
    todo = [position for position in positions if position not in asked]
    maker = GroupMaker(recipe, replicas, report.digest, earlier)
    work = StageWork(recipe, writer, maker, _reusable(recipe.rollout.reuse, writer.key), before)

    def check(finished: bool = False) -> None:
        check_limits(recipe.rollout, len(positions), folder, list(work.rejected.values()), work.tally, finished)

    check()
    title = f"stage {recipe.stage.index}: rollouts at mask ratio {recipe.stage.ratio:g}"
    reused = 0
    with track(title, len(positions), len(positions) - len(todo)) as advance:
        for batch in work.make(questions, todo, replicas):
            made, reused = len(batch) - (work.reused - reused), work.reused
            advance(len(batch), _note(work.tally), made=made, tokens=_written(maker))
            check()
    check(finished=True)
    outcome = StageOutcome(
        stage=recipe.stage.index,
        ratio=recipe.stage.ratio,
        sparsity=report.sparsity,
        masked=report.masked,
        unmasked=report.unmasked,
        teacher_digest=report.digest,
        seconds=work.seconds(),
        set_aside=dict(Counter(one.kind for one in work.rejected.values())),
        calls=maker.calls(),
        stored_bytes=writer.folder.bytes(),
        **vars(work.tally),
    )
    writer.finish(dataclasses.asdict(outcome))
    if kinds := ", ".join(f"{kind} {count}" for kind, count in outcome.set_aside.items()):
        warn(f"stage {outcome.stage}: {len(work.rejected)} questions set aside ({kinds}); quarantine.jsonl names them")
    for remark in remarks.of(f"stage {outcome.stage}", outcome, recipe.judge.rule):
        warn(remark)


def _written(maker: GroupMaker) -> dict[str, float]:
    """Returns role → tokens that it has written."""
    return {call.split(".")[0]: one["tokens"] for call, one in maker.calls().items() if not call.endswith(".score")}


def _note(tally: AnswerTally) -> str:
    """Formats a tally for the progress line."""
    cut = {source: f", {share:.0%} cut" for source, share in tally.rates("cut", "written").items() if share}
    rates = tally.rates("right", "judged").items()
    return "  ".join(f"{source} right {rate:.0%}{cut.get(source, '')}" for source, rate in rates)


def check_limits(
    rollout: Rollout,
    questions: int,
    folder: store.Where,
    rejected: Sequence[Rejected],
    tally: AnswerTally,
    finished: bool = False,
) -> None:
    """Raises DataError with counts and examples when a stage of so many questions passes a limit. rejected: those
    without a row. finished: all were asked, so shares of answers are compared however few answers there are."""
    if len(rejected) > rollout.max_set_aside_share * questions:
        kinds = ", ".join(f"{kind} {count}" for kind, count in Counter(one.kind for one in rejected).items())
        examples = "".join(f"\n  {one.kind}. {one.row}: {one.reason}" for one in rejected[:_EXAMPLES])
        raise DataError(
            f"{folder}: {len(rejected)} of {questions} questions were set aside ({kinds}); rollout.max_set_aside_share "
            f"allows {rollout.max_set_aside_share:g}. The first:{examples}\nMend what they name and choose another "
            "run.dir (rollout.reuse takes over the rows made here), or raise rollout.max_set_aside_share and call "
            "again: what is stored stays."
        )
    if tally.answers < _ENOUGH_ANSWERS and not finished:
        return
    cut = f"are cut at rollout.sampling.max_tokens = {rollout.sampling.max_tokens}"
    for key, count, answers, told in (
        ("max_unjudged_share", tally.unjudged, tally.answers, "could not be judged"),
        ("max_empty_share", tally.empty, tally.answers, "have no word"),
        ("max_cut_share", tally.teacher_cut, tally.teacher_written, f"of the teacher {cut}"),
        ("max_cut_share", tally.student_cut, tally.student_written, f"of the student {cut}"),
    ):
        allowed = getattr(rollout, key)
        if count > allowed * answers:
            raise DataError(
                f"{folder}: {count} of {answers} answers {told}; rollout.{key} allows {allowed:g}. Look at them with: "
                f"masters-ray store verify {folder}. Change what makes them, in another run.dir, or raise "
                f"rollout.{key} and call again: what is stored stays."
            )


def question_batches(questions: Questions, positions: Iterable[int], size: int) -> Iterator[Batch]:
    """Yields batches of at most ``size`` neighbouring questions of those at ``positions``.

    A batch never spans a question that is left out, so that shards, sorted by their first position, hold rows in order.
    Example: positions 0, 1, 3, 4, 5, size 2: batches [0, 1], [3, 4], [5].
    """
    for _, neighbours in groupby(enumerate(positions), key=lambda pair: pair[1] - pair[0]):
        for batch in batches([position for _, position in neighbours], size):
            yield list(zip(batch, questions[batch[0] : batch[-1] + 1], strict=True))


def _reusable(folders: Sequence[str], key: dict[str, Any]) -> store.Lookup | None:
    """Returns the rows of stores in ``folders`` that were made by the same recipe, whatever their other questions."""

    def of_rows(key: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in key.items() if name not in OF_QUESTIONS}

    stores = (one for folder in folders for one in stores_in(folder))
    fitting = [one for one in stores if of_rows(store.read_key(one)) == of_rows(key)]
    if not fitting:
        return None
    found = store.Lookup(fitting)
    say(f"{len(found)} rows made by the same recipe can be taken over from {', '.join(map(str, fitting))}")
    return found


def stores_in(folder: str) -> list[store.Folder]:
    """Returns the stores in a directory of rollout.reuse. Raises StoreError when there are none."""
    opened = store.Folder(folder)
    stores = [opened / name for name in opened.folders() if (opened / name).has(store.KEY)]
    if not stores:
        raise StoreError(f"rollout.reuse: {folder} holds no store. A run's stores are in its rollouts directory.")
    return stores


class StageWork:
    """Makes batches on several threads, stores each as a shard, and sums up their results."""

    def __init__(
        self,
        recipe: Recipe,
        writer: store.Writer,
        maker: GroupMaker,
        reusable: store.Lookup | None = None,
        before: Sequence[store.Account] = (),
    ) -> None:
        """reusable: rows to take over. before: accounts of shards that earlier calls stored."""
        self._recipe, self._writer, self._maker, self._reusable = recipe, writer, maker, reusable
        self.tally = sum((AnswerTally(**account.noted["tally"]) for account in before), AnswerTally())
        self.reused = 0
        """Rows taken over."""
        self.rejected = {position: row for account in before for position, row in account.rejected.items()}
        """Position → why the question is set aside, earlier calls included."""
        self._began = time.monotonic() - max((account.noted["seconds"] for account in before), default=0.0)

    def make(
        self,
        questions: Questions,
        positions: Iterable[int],
        replicas: Replicas,
        wanted: Callable[[Batch], bool] = lambda _: True,
    ) -> Iterator[Batch]:
        """Yields batches when they are stored. A batch on which replicas died twice is made at the end, question by
        question; a question on which they die three times is set aside. wanted: is asked before each batch."""
        suspects: list[Batch] = []
        todo = question_batches(questions, positions, self._recipe.rollout.batch_rows)
        # As many batches as all pools have places together, so that the busiest pool is never idle.
        at_once = sum(pool.most_calls_at_once for pool in replicas.pools.values())
        for batch, made in map_unordered(self._attempt, takewhile(wanted, todo), at_once):
            if isinstance(made, ReplicaLostError):
                suspects.append(batch)
            else:
                yield self._add_up(batch, made)
        for single in takewhile(wanted, ([question] for batch in suspects for question in batch)):
            made = self._attempt(single, _TRIES_SINGLE)
            if isinstance(made, ReplicaLostError):
                [(position, problem)] = single
                reason = f"a replica died {_TRIES_SINGLE} times in a row on this question: {made}"
                made = MadeBatch(rejected={position: Rejected(row=problem.id, reason=reason, kind="replica")})
                self._store(single, made)
            yield self._add_up(single, made)

    def seconds(self) -> float:
        """Returns the seconds of work on the stage so far, in this call and earlier calls."""
        return time.monotonic() - self._began

    def _attempt(self, batch: Batch, tries: int = _TRIES_IN_BATCH) -> MadeBatch | ReplicaLostError:
        """Makes and stores a batch. Returns the last error when replicas die each time."""
        for _ in range(tries):
            try:
                made = self._reused_or_made(batch)
            except ReplicaLostError as error:
                lost = error
                warn(f"questions {batch[0][1].id} to {batch[-1][1].id} are taken again: {error}")
            else:
                self._store(batch, made)
                return made
        return lost

    def _add_up(self, batch: Batch, made: MadeBatch) -> Batch:
        self.tally += made.tally
        self.reused += made.reused
        self.rejected |= made.rejected
        return batch

    def _reused_or_made(self, batch: Batch) -> MadeBatch:
        """Returns the batch's rows; takes over reusable rows and makes the others."""
        if self._reusable is None:
            return self._maker.make(batch)
        found = self._reusable.rows([problem.digest for _, problem in batch])
        taken = {
            position: store.rows.moved(found[problem.digest], position, self._recipe.stage.index)
            for position, problem in batch
            if problem.digest in found
        }
        made = self._maker.make([(position, problem) for position, problem in batch if position not in taken])
        if not taken:
            return made
        reused = pa.concat_tables(taken.values()).combine_chunks()
        judged = [(group.problem, [one.judged for one in group.answers]) for group in store.groups(reused)]
        return MadeBatch(
            rows=pa.concat_tables([made.rows, reused]).sort_by("position"),
            rejected=made.rejected,
            tally=made.tally + tally(judged, self._recipe.judge, reused),
            reused=len(taken),
        )

    def _store(self, batch: Batch, made: MadeBatch) -> None:
        noted = {"tally": dataclasses.asdict(made.tally), "seconds": self.seconds()}
        asked = {position: problem.digest for position, problem in batch}
        self._writer.write(made.rows, store.Account(asked=asked, rejected=made.rejected, noted=noted))
