"""Questions → answers, verdicts, scores → rows of the store, by calls to the replicas."""

from __future__ import annotations

import dataclasses
import hashlib
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import pyarrow as pa

from masters_ray import data, store
from masters_ray.actors.host import Role
from masters_ray.actors.judge import Verdict
from masters_ray.actors.model import ScoredBatch, TokenIds, WrittenBatch
from masters_ray.actors.pool import Pool
from masters_ray.actors.replicas import Replicas
from masters_ray.config import Judge, JudgedBy, Rollout
from masters_ray.masks import MaskReport
from masters_ray.pipeline.known import Known, Wanted
from masters_ray.pipeline.tally import Tally
from masters_ray.pipeline.threads import at_once
from masters_ray.pipeline.verdicts import Case, Judging, Verdicts
from masters_ray.records import Answer, JudgedAnswer, Problem, Refused, Rejected, Source
from masters_ray.schedule import Stage

Batch = Sequence[tuple[int, Problem]]
"""Questions with their positions in the seeded order of the run's data."""


@dataclass(frozen=True, kw_only=True)
class Online:
    """An iteration whose questions are answered while the student learns."""

    iteration: int
    version: int
    """Of the student that writes."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a stage's rows depend on beside its questions; a store goes on only with the same."""

    stage: Stage
    rollout: Rollout
    judge: Judge
    judges: Mapping[JudgedBy, str]
    """Models that judge → what tells each from any other model."""
    seed: int
    student_digest: str
    """Of the student that writes."""
    made_with: Mapping[str, Any]
    """Whatever else of the configuration and the checkpoints decides the rows."""
    online: Online | None = None
    """The online iteration that the answers are for; None: they are written before training."""

    @property
    def judging(self) -> Judging:
        return Judging(settings=self.judge, models=self.judges)

    def key(self, report: MaskReport) -> dict[str, Any]:
        """The same as plain values, for a store. report: the teacher as it is masked."""
        return {"teacher_digest": report.digest, **self.settings}

    @property
    def settings(self) -> dict[str, Any]:
        """The part of ``key`` that is known before the teacher is masked."""
        return {
            "mask_ratio": self.stage.ratio,
            "student_digest": None if self.online else self.student_digest,
            "online": self.online is not None,
            "seed": self.seed,
            "teacher_answers": self.rollout.teacher_answers,
            "student_answers": self.rollout.student_answers,
            "sampling": dataclasses.asdict(self.rollout.sampling),
            "judge": {
                "of_teacher": self.judge.of_teacher,
                "of_student": self.judge.of_student,
                "rule": self.judge.rule if "rule" in (self.judge.of_teacher, self.judge.of_student) else None,
                "reasoning": self.judge.reasoning,
                "max_tokens": self.judge.max_tokens,
            },
            **self.made_with,
        }


@dataclass(frozen=True, kw_only=True)
class Earlier:
    """Rows whose student answers are the ones that the student would write again."""

    rows: store.Lookup
    judging: Judging
    """How they were judged."""


@dataclass(frozen=True, kw_only=True)
class Made:
    """What came of a batch."""

    rows: pa.Table
    """store.SCHEMA, in the batch's order."""
    rejected: dict[int, Rejected]
    """By position: the questions of the batch that have no row."""
    tally: Tally


class Clock:
    """What calls took, by pool and method; used by several threads at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sums: dict[str, dict[str, float]] = {}

    @contextmanager
    def timed(self, call: str, questions: int) -> Iterator[None]:
        """A call that the block makes, such as "teacher.answer"."""
        began = time.monotonic()
        yield
        news = {"calls": 1.0, "questions": float(questions), "seconds": time.monotonic() - began}
        with self._lock:
            sums = self._sums.setdefault(call, dict.fromkeys(news, 0.0))
            for name, value in news.items():
                sums[name] += value

    def read(self) -> dict[str, dict[str, float]]:
        """Pool and method → calls, questions, seconds; what failed does not count."""
        with self._lock:
            return {name: dict(sums) for name, sums in self._sums.items()}


class GroupMaker:
    """Questions → groups, by calls to the pools; used by several threads at once.

    In an online iteration the student that writes scores the teacher's answers as well: it is the behaviour policy.
    """

    def __init__(
        self,
        recipe: Recipe,
        pools: Replicas,
        teacher_digest: str,
        earlier: Earlier | None = None,
        verdicts: Verdicts | None = None,
    ) -> None:
        """verdicts: the run's; default: none yet."""
        self._recipe = recipe
        self._judging = recipe.judging
        self._verdicts = Verdicts() if verdicts is None else verdicts
        self._pools = pools.pools
        self._writers: dict[Source, Pool] = {"teacher": pools.pools["teacher"], "student": pools.pools["student"]}
        # The student that writes is the reference policy until it has learned something.
        learned = recipe.student_digest != recipe.made_with.get("reference_digest")
        self._reference: Role = "reference" if learned and "reference" in pools.pools else "student"
        self._behaviour: tuple[Role, ...] = ("student",) if recipe.online else ()
        scorers = dict.fromkeys(("teacher", self._reference, *self._behaviour))
        self._scorers: dict[Role, Pool] = {role: pools.pools[role] for role in scorers}
        self.clock = Clock()
        self._teacher_digest = teacher_digest
        self._earlier = earlier

    def make(self, batch: Batch) -> Made:
        """The rows of these questions, in their order, and the questions that have none. Raises ReplicaLostError."""
        rejected: dict[int, Rejected] = {}
        asked = self._opened(batch, rejected)
        if not asked:
            return Made(rows=store.SCHEMA.empty_table(), rejected=rejected, tally=Tally())
        work = _Questions(asked, self._recipe)
        shared = self._writers["teacher"].share(work.problems)
        self._write(work, shared)
        with self.clock.timed("judge.judge", len(work.problems)):
            verdicts = self._verdicts.of(self._judging, self._pools, work.problems, shared, work.written(), work.told)
        work.add_verdicts(verdicts)
        kept = work.readable()
        wanted = {index: [one.answer.token_ids for one in kept[index]] for index in kept}
        at_once([partial(self._score, role, work.known[role], wanted, shared) for role in self._scorers])
        rejected |= work.rejected()
        return self._made(
            work, {index: kept[index] for index in kept if work.position(index) not in rejected}, rejected
        )

    def _opened(self, batch: Batch, rejected: dict[int, Rejected]) -> list[_Asked]:
        """The batch's questions, with their pictures as conf wants them stored."""
        embed = self._recipe.rollout.pictures == "embed"
        opened = []
        for position, problem in batch:
            try:
                pictured = data.with_embedded_pictures(problem) if embed else problem
            except data.BadPictureError as error:
                rejected[position] = Rejected(row=problem.id, reason=str(error), kind="picture")
            else:
                opened.append(_Asked(position, problem.digest, pictured))
        return opened

    def _write(self, work: _Questions, shared: Any) -> None:
        sampling, counts = self._recipe.rollout.sampling, work.counts
        if self._earlier is not None:
            work.take_over(self._earlier)
        seeds = {source: work.seeds(source) for source in self._writers if counts[source]}
        written: dict[Source, WrittenBatch] = {}

        def write(source: Source) -> None:
            with self.clock.timed(f"{source}.answer", len(seeds[source])):
                written[source] = self._writers[source].call("answer", shared, sampling, counts[source], seeds[source])

        at_once([partial(write, source) for source in seeds if any(seed is not None for seed in seeds[source])])
        for source in self._writers:
            if source in written:
                work.add(source, written[source])

    def _score(self, role: Role, known: Known, wanted: Wanted, shared: Any) -> None:
        """Of what the model has not said anything of yet."""
        missing = known.missing(wanted)
        if any(missing):
            with self.clock.timed(f"{role}.score", sum(map(bool, missing))):
                scored: ScoredBatch = self._scorers[role].call("score", shared, missing)
            known.add(missing, scored)

    def _made(self, work: _Questions, kept: dict[int, list[JudgedAnswer]], rejected: dict[int, Rejected]) -> Made:
        wanted = {index: [one.answer.token_ids for one in answers] for index, answers in kept.items()}
        roles: tuple[Role, ...] = ("teacher", self._reference, *self._behaviour)
        top, reference, *behaviour = (work.known[role].take(wanted) for role in roles)
        rows = [
            store.Row(
                position=work.position(index),
                stage=self._recipe.stage.index,
                mask_ratio=self._recipe.stage.ratio,
                problem=work.problems[index],
                prompt_tokens=work.known[self._reference].prompt_tokens[index],
                answers=answers,
                teacher_digest=self._teacher_digest,
                student_digest=self._recipe.student_digest,
                version=self._recipe.online.version if self._recipe.online else None,
            )
            for index, answers in kept.items()
        ]
        left_out = store.left_out(top) if rows else 0.0
        tally = Tally.of(
            work.judged(),
            self._recipe.judge,
            rows=len(rows),
            tokens=int(top.lengths.sum()),
            left_out=left_out,
        )
        return Made(rows=store.table(rows, top, reference, *behaviour), rejected=rejected, tally=tally)


class _Asked(NamedTuple):
    position: int
    digest: str
    """Of the question as it stands in the data."""
    problem: Problem


class _Questions:
    """A batch on its way: what was written, judged and scored so far, by the question's index."""

    def __init__(self, asked: Sequence[_Asked], recipe: Recipe) -> None:
        self.problems = [one.problem for one in asked]
        self.counts: dict[Source, int] = {
            "teacher": recipe.rollout.teacher_answers,
            "student": recipe.rollout.student_answers,
        }
        roles: tuple[Role, ...] = ("teacher", "student", "reference")
        self.known = {role: Known(len(asked)) for role in roles}
        """What each model said. The reference is the student itself unless other processes play it."""
        self._asked = asked
        self._recipe = recipe
        self.told: dict[Case, Verdict] = {}
        """Verdicts that came with the answers."""
        self._written: dict[Source, list[tuple[Answer, ...]]] = {source: [()] * len(asked) for source in self.counts}
        self._taken_over: set[int] = set()
        """Questions whose student answers are there already."""
        self._judged: list[list[JudgedAnswer]] = [[] for _ in asked]

    def position(self, index: int) -> int:
        return self._asked[index].position

    def seeds(self, source: Source) -> list[int | None]:
        """Of each question, None where the source has nothing to write."""
        return [
            None
            if self._refused(index) or (source == "student" and index in self._taken_over)
            else sampling_seed(self._recipe, source, problem.id)
            for index, problem in enumerate(self.problems)
        ]

    def add(self, source: Source, written: WrittenBatch) -> None:
        self._written[source] = [own or new for own, new in zip(self._written[source], written.answers, strict=True)]
        self.known[source].add([[one.token_ids for one in group] for group in written.answers], written.scored)

    def take_over(self, earlier: Earlier) -> None:
        """The student's answers from earlier rows of the same questions, and their verdicts if this recipe's judge gave
        them. An answer that another judge could not read is not among them: such a question is answered again."""
        same = self._recipe.judging.identity("student") == earlier.judging.identity("student")
        found = earlier.rows.rows([one.digest for one in self._asked])
        answers: list[list[TokenIds]] = [[] for _ in self._asked]
        prompt_tokens = [0] * len(answers)
        logprobs = []
        for index, (asked, problem) in enumerate(zip(self._asked, self.problems, strict=True)):
            if asked.digest not in found:
                continue
            [group] = store.groups(found[asked.digest])
            of_student = [one for one in group.answers if one.judged.answer.source == "student"]
            if not same and len(of_student) < self.counts["student"]:
                continue
            self._taken_over.add(index)
            self._written["student"][index] = tuple(one.judged.answer for one in of_student)
            answers[index] = [one.judged.answer.token_ids for one in of_student]
            prompt_tokens[index] = group.prompt_tokens
            logprobs += [one.reference_logprobs for one in of_student]
            if same:
                self._tell(problem, [one.judged for one in of_student])
        tokens = store.own_logprobs(logprobs)
        self.known["student"].add(answers, ScoredBatch(prompt_tokens=prompt_tokens, refused={}, tokens=tokens))

    def _tell(self, problem: Problem, judged: Sequence[JudgedAnswer]) -> None:
        for one in judged:
            case = self._recipe.judging.case(one.answer.source, problem, one.answer.text)
            if case is not None:
                self.told[case] = Verdict(accuracy=one.accuracy, text=one.verdict, reasoning=one.reasoning)

    def written(self) -> list[list[Answer]]:
        """Of each question the answers that there are, the teacher's first."""
        return [self._answers(index) for index in range(len(self.problems))]

    def add_verdicts(self, verdicts: Sequence[Sequence[Verdict]]) -> None:
        for index, group in enumerate(verdicts):
            self._judged[index] = [
                JudgedAnswer(
                    answer=answer, accuracy=verdict.accuracy, verdict=verdict.text, reasoning=verdict.reasoning
                )
                for answer, verdict in zip(self._answers(index), group, strict=True)
            ]

    def judged(self) -> list[tuple[Problem, list[JudgedAnswer]]]:
        """Every answer that was judged."""
        return [
            (problem, self._judged[index]) for index, problem in enumerate(self.problems) if not self._refused(index)
        ]

    def readable(self) -> dict[int, list[JudgedAnswer]]:
        """The answers of each question that can be stored, the teacher's first; a question needs two."""
        found = {}
        for index in range(len(self.problems)):
            readable = [one for one in self._judged[index] if self._can_be_read(one)]
            if len(readable) >= 2 and not self._refused(index):
                found[index] = readable
        return found

    def rejected(self) -> dict[int, Rejected]:
        """By position: questions that a model could not be asked, or of which too few answers can be read."""
        readable = self.readable()
        found = {}
        for index, problem in enumerate(self.problems):
            if (refusal := self._refused(index)) is not None:
                found[self.position(index)] = Rejected(row=problem.id, reason=refusal.reason, kind=refusal.kind)
            elif index not in readable:
                answers = self._judged[index]
                count = sum(self._can_be_read(one) for one in answers)
                reason = f"the judge could read {count} of {len(answers)} answers"
                found[self.position(index)] = Rejected(row=problem.id, reason=reason, kind="judge")
        return found

    def _answers(self, index: int) -> list[Answer]:
        if self._refused(index):
            return []
        return [*self._written["teacher"][index], *self._written["student"][index]]

    def _can_be_read(self, judged: JudgedAnswer) -> bool:
        return judged.accuracy is not None and (judged.reasoning is not None or not self._recipe.judge.reasoning)

    def _refused(self, index: int) -> Refused | None:
        for role, known in self.known.items():
            if (one := known.refused.get(index)) is not None:
                told = one.reason if one.kind == "picture" else f"the {role}'s engine refuses it: {one.reason}"
                return Refused(reason=told, kind=one.kind)
        return None


def sampling_seed(recipe: Recipe, source: Source, problem_id: str) -> int:
    """The seed of one question's answers: the same wherever and beside whatever they are sampled. Before training the
    student is the same in all stages, so its answers are; in an online iteration all answers are new ones."""
    name = f"{recipe.seed}/teacher/{recipe.stage.ratio:g}" if source == "teacher" else f"{recipe.seed}/student"
    if recipe.online:
        name += f"/iteration {recipe.online.iteration}"
    return int.from_bytes(hashlib.sha256(f"{name}/{problem_id}".encode()).digest()[:4], "big") >> 1
