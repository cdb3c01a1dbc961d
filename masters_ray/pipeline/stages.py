"""One function for each stage of a run: load, deploy, evaluate, roll out, learn."""

from __future__ import annotations

import dataclasses
import hashlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from masters_ray import data, store
from masters_ray.actors.host import HostSpec
from masters_ray.actors.judge import Case, Verdict
from masters_ray.actors.pool import Deployment, Pool, Replicas
from masters_ray.config import Config, Rollout
from masters_ray.engines.vllm_engine import Mask
from masters_ray.errors import CheckpointError
from masters_ray.evaluate import Marked, by_rule, mark
from masters_ray.masks import MaskReport
from masters_ray.progress import track
from masters_ray.prompts import matches
from masters_ray.records import (
    Answer,
    JudgedAnswer,
    Problem,
    Rejected,
    RolloutGroup,
    ScoredAnswer,
    Source,
    StageOutcome,
    TokenScores,
)
from masters_ray.schedule import Stage

T = TypeVar("T")
_EVALUATED_AT_A_TIME = 128
"""Held-out questions that a replica is handed at a time."""


def deployments(config: Config, first_ratio: float) -> list[Deployment]:
    """The processes that rollouts need: teachers; students and judges, together as far as conf shares them."""
    teacher, student, judge = config.teacher, config.student, config.judge
    together = min(student.replicas, judge.replicas) if judge.share_process else 0
    own = HostSpec(
        checkpoint=absolute(student.checkpoint),
        roles=("student",),
        engine=student.engine,
        tensor_parallel=student.tensor_parallel,
        judge_max_tokens=judge.max_tokens,
    )
    wanted = [
        (dataclasses.replace(own, roles=("student", "judge")), together),
        (own, student.replicas - together),
        (dataclasses.replace(own, roles=("judge",)), judge.replicas - together),
    ]
    masked = HostSpec(
        checkpoint=absolute(teacher.checkpoint),
        roles=("teacher",),
        engine=teacher.engine,
        tensor_parallel=teacher.tensor_parallel,
        top_k=teacher.top_k,
        mask=Mask(scope=teacher.mask, ratio=first_ratio),
    )
    return [
        Deployment(spec=masked, replicas=teacher.replicas, cpus=teacher.cpus, gpus=teacher.gpus),
        *(
            Deployment(spec=spec, replicas=replicas, cpus=student.cpus, gpus=student.gpus)
            for spec, replicas in wanted
            if replicas
        ),
    ]


def final_deployments(config: Config, trained: Path) -> list[Deployment]:
    """The processes that measuring the trained student needs: itself, and the judge unless the rule marks."""
    student = config.student
    judge = HostSpec(
        checkpoint=absolute(student.checkpoint),
        roles=("judge",),
        engine=student.engine,
        tensor_parallel=student.tensor_parallel,
        judge_max_tokens=config.judge.max_tokens,
    )
    measured = dataclasses.replace(judge, checkpoint=str(trained), roles=("student",))
    wanted = [(measured, student.replicas)]
    if config.evaluation.marked_by == "judge":
        wanted.append((judge, config.judge.replicas))
    return [Deployment(spec=spec, replicas=replicas, cpus=student.cpus, gpus=student.gpus) for spec, replicas in wanted]


def evaluate(pool: Pool, judge: Pool | None, problems: Sequence[Problem], max_tokens: int, title: str) -> list[Marked]:
    """Greedy answers of a pool's model to the held-out questions, marked by the judge, or by the rule without one.

    An answer whose verdict cannot be read counts as wrong here.
    """
    batches = _batches(problems, _EVALUATED_AT_A_TIME)
    marked: dict[int, list[Marked]] = {}

    def answer(number: int) -> None:
        batch = batches[number]
        answers: list[str] = pool.call("answer_greedily", batch, max_tokens)
        if judge is None:
            correct = by_rule(batch, answers)
        else:
            verdicts: list[Verdict] = judge.call("judge", _cases(zip(batch, answers, strict=True)))
            correct = [verdict.accuracy == 1 for verdict in verdicts]
        marked[number] = mark(batch, answers, correct)

    with track(title, len(problems)) as advance, _threads(len(pool)) as each:
        for number in each(answer, range(len(batches))):
            advance(len(batches[number]))
    return [one for number in range(len(batches)) for one in marked[number]]


def mask_teachers(pool: Pool, ratio: float) -> MaskReport:
    """Every teacher replica at ``ratio``; all must report the same weights."""
    reports = pool.call_all("mask", ratio)
    if any(report != reports[0] for report in reports):
        raise CheckpointError(
            f"teacher replicas hold different weights: {reports}. Is the checkpoint the same on every node?"
        )
    return reports[0]


def roll_out(
    stage: Stage,
    problems: Sequence[tuple[int, Problem]],
    pools: Replicas,
    rollout: Rollout,
    seed: int,
    student_digest: str,
    folder: Path,
) -> list[Rejected]:
    """Make one stage's groups and its store in ``folder``; ``problems`` are (position, problem).

    Shards are handed to whichever replicas are idle, several at a time, and written as they are finished. Returns the
    questions set aside because the judge could read fewer than two of their answers.
    """
    started = time.monotonic()
    teacher, student, judge = (pools.pools[role] for role in ("teacher", "student", "judge"))
    report = mask_teachers(teacher, stage.ratio)
    writer = store.Writer(folder)
    shards = _batches(problems, rollout.shard_rows)
    maker = _GroupMaker(stage, teacher, student, judge, rollout, seed, report.digest, student_digest)

    def make(number: int) -> None:
        writer.write(number, maker.groups(shards[number]))

    title = f"stage {stage.index}: rollouts at mask ratio {stage.ratio:g}"
    with track(title, len(problems)) as advance, _threads(len(teacher) + len(student) + len(judge)) as each:
        for number in each(make, range(len(shards))):
            advance(len(shards[number]), maker.tally.note())
    outcome = maker.tally.outcome(stage, report, rows=maker.stored, seconds=time.monotonic() - started)
    writer.finish(dataclasses.asdict(outcome))
    return maker.rejected


class _GroupMaker:
    """Questions → groups, by calls to the pools; used by several threads at once."""

    def __init__(
        self,
        stage: Stage,
        teacher: Pool,
        student: Pool,
        judge: Pool,
        rollout: Rollout,
        seed: int,
        teacher_digest: str,
        student_digest: str,
    ) -> None:
        self._stage, self._rollout, self._seed = stage, rollout, seed
        self._teacher, self._student, self._judge = teacher, student, judge
        self._digests = teacher_digest, student_digest
        self._lock = threading.Lock()
        self.tally = _Tally()
        self.rejected: list[Rejected] = []
        self.stored = 0

    def groups(self, numbered: Sequence[tuple[int, Problem]]) -> list[RolloutGroup]:
        """The groups of these (position, problem), in their order."""
        problems = [problem for _, problem in numbered]
        drawn = [
            teachers + students
            for teachers, students in zip(
                self._answers("teacher", problems), self._answers("student", problems), strict=True
            )
        ]
        kept: list[tuple[int, Problem, list[JudgedAnswer]]] = []
        rejected: list[Rejected] = []
        everything = self._judged(problems, drawn)
        for (position, problem), judged in zip(numbered, everything, strict=True):
            readable = [one for one in judged if one.accuracy is not None]
            if len(readable) < 2:
                reason = f"the judge could read {len(readable)} of {len(judged)} answers"
                rejected.append(Rejected(row=problem.id, reason=reason))
            else:
                kept.append((position, problem, readable))
        groups = self._scored(kept)
        with self._lock:
            for problem, judged in zip(problems, everything, strict=True):
                self.tally.count(problem, judged)
            self.tally.count_scores(groups)
            self.rejected += rejected
            self.stored += len(groups)
        return groups

    def _answers(self, source: Source, problems: list[Problem]) -> list[tuple[Answer, ...]]:
        pool, count = (
            (self._teacher, self._rollout.teacher_answers)
            if source == "teacher"
            else (self._student, self._rollout.student_answers)
        )
        if count == 0:
            return [()] * len(problems)
        seeds = [sampling_seed(self._seed, self._stage.index, source, problem.id) for problem in problems]
        return pool.call("answer", problems, self._rollout.sampling, count, seeds)

    def _judged(self, problems: list[Problem], drawn: list[tuple[Answer, ...]]) -> list[list[JudgedAnswer]]:
        pairs = ((problem, answer.text) for problem, one in zip(problems, drawn, strict=True) for answer in one)
        cases = _cases(pairs)
        verdicts: Iterator[Verdict] = iter(self._judge.call("judge", cases))
        judged = []
        for answers in drawn:
            said = [next(verdicts) for _ in answers]
            judged.append(
                [
                    JudgedAnswer(answer=answer, accuracy=one.accuracy, verdict=one.text)
                    for answer, one in zip(answers, said, strict=True)
                ]
            )
        return judged

    def _scored(self, kept: list[tuple[int, Problem, list[JudgedAnswer]]]) -> list[RolloutGroup]:
        if not kept:
            return []
        problems = [problem for _, problem, _ in kept]
        answers = [[one.answer for one in judged] for _, _, judged in kept]
        scores: list[tuple[int, list[TokenScores]]] = self._teacher.call("score", problems, answers)
        references = self._student.call("logprobs", problems, answers)
        teacher_digest, student_digest = self._digests
        return [
            RolloutGroup(
                position=position,
                stage=self._stage.index,
                mask_ratio=self._stage.ratio,
                problem=problem,
                prompt_tokens=prompt_tokens,
                answers=tuple(
                    ScoredAnswer(judged=one, teacher=top, reference_logprobs=own)
                    for one, top, own in zip(judged, tops, owns, strict=True)
                ),
                teacher_digest=teacher_digest,
                student_digest=student_digest,
            )
            for (position, problem, judged), (prompt_tokens, tops), owns in zip(kept, scores, references, strict=True)
        ]


class _Tally:
    """Counts over the answers of a stage."""

    def __init__(self) -> None:
        self.answers = self.unjudged = self.agreements = 0
        self._right: dict[Source, list[int]] = {"teacher": [], "student": []}
        self._left_out = 0.0
        self._tokens = 0

    def count(self, problem: Problem, judged: Sequence[JudgedAnswer]) -> None:
        for one in judged:
            self.answers += 1
            if one.accuracy is None:
                self.unjudged += 1
                continue
            self._right[one.answer.source].append(one.accuracy)
            self.agreements += one.accuracy == matches(one.answer.text, problem.label)

    def count_scores(self, groups: Sequence[RolloutGroup]) -> None:
        for answer in (answer for group in groups for answer in group.answers):
            self._left_out += float(answer.teacher.left_out.sum())
            self._tokens += len(answer.teacher.left_out)

    def note(self) -> str:
        return "  ".join(f"{source} right {rate:.0%}" for source, rate in self._rates().items())

    def outcome(self, stage: Stage, report: MaskReport, rows: int, seconds: float) -> StageOutcome:
        return StageOutcome(
            stage=stage.index,
            ratio=stage.ratio,
            sparsity=report.sparsity,
            teacher_digest=report.digest,
            rows=rows,
            seconds=seconds,
            answers=self.answers,
            unjudged=self.unjudged,
            judge_rule_agreements=self.agreements,
            accuracy_by_source={str(source): rate for source, rate in self._rates().items()},
            left_out=self._left_out / self._tokens if self._tokens else 0.0,
        )

    def _rates(self) -> dict[Source, float]:
        return {source: sum(right) / len(right) for source, right in self._right.items() if right}


def sampling_seed(seed: int, stage: int, source: Source, problem_id: str) -> int:
    """The seed of one question's answers: the same wherever and beside whatever they are sampled."""
    name = f"{seed}/{stage}/{source}/{problem_id}".encode()
    return int.from_bytes(hashlib.sha256(name).digest()[:4], "big") >> 1


def load(config: Config) -> tuple[data.Loaded, data.Loaded]:
    """The training and the held-out questions in their seeded order."""
    share = config.data.max_quarantined_share
    pictures = min(config.teacher.engine.max_pictures, config.student.engine.max_pictures)
    train = data.load(config.data.train, config.run.seed, share, pictures)
    return train, data.load(config.data.held_out, config.run.seed, share, pictures)


def _cases(pairs: Iterable[tuple[Problem, str]]) -> list[Case]:
    return [Case(question=problem.question, label=problem.label, answer=answer) for problem, answer in pairs]


def absolute(checkpoint: str) -> str:
    """A directory's whole path: an actor's current directory is not the driver's."""
    return str(Path(checkpoint).absolute()) if Path(checkpoint).is_dir() else checkpoint


def _batches(rows: Sequence[T], size: int) -> list[Sequence[T]]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


@contextmanager
def _threads(count: int) -> Iterator[Callable[[Callable[[Any], None], Sequence[Any]], Iterator[Any]]]:
    """``each(function, items)``: run on ``count`` threads, yield items as they are finished, raise the first error.

    When the block is left early nothing more is started, and what runs is not waited for.
    """
    executor = ThreadPoolExecutor(count)

    def each(function: Callable[[Any], None], items: Sequence[Any]) -> Iterator[Any]:
        futures: dict[Future[None], Any] = {executor.submit(function, item): item for item in items}
        for future in as_completed(futures):
            future.result()
            yield futures[future]

    try:
        yield each
    finally:
        executor.shutdown(wait=False, cancel_futures=True)
