"""One stage's rollouts: questions → answers, verdicts, scores → groups in a store."""

from __future__ import annotations

import dataclasses
import hashlib
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from masters_ray import store
from masters_ray.actors.judge import Case, Verdict
from masters_ray.actors.pool import Pool, Replicas
from masters_ray.config import Rollout
from masters_ray.errors import CheckpointError
from masters_ray.masks import MaskReport
from masters_ray.pipeline.threads import batches, threads
from masters_ray.progress import track
from masters_ray.prompts import matches
from masters_ray.records import (
    Answer,
    JudgedAnswer,
    Problem,
    Refused,
    Rejected,
    RolloutGroup,
    Scored,
    ScoredAnswer,
    Source,
    StageOutcome,
    Written,
)
from masters_ray.schedule import Stage

_BATCHES_IN_FLIGHT = 2
"""For each call that finds a place on a replica: one is worked on while another waits for its turn elsewhere."""


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

    Shards are worked on several at a time, and written as they are finished. Returns the questions set aside: those
    that an engine refused, and those of which the judge could read fewer than two answers.
    """
    started = time.monotonic()
    report = mask_teachers(pools.pools["teacher"], stage.ratio)
    writer = store.Writer(folder)
    shards = batches(problems, rollout.shard_rows)
    maker = GroupMaker(stage, pools, rollout, seed, report.digest, student_digest)

    def make(number: int) -> None:
        writer.write(number, maker.groups(shards[number]))

    title = f"stage {stage.index}: rollouts at mask ratio {stage.ratio:g}"
    in_flight = _BATCHES_IN_FLIGHT * sum(pool.calls_at_once for pool in pools.pools.values())
    with track(title, len(problems)) as advance, threads(in_flight) as each:
        for number in each(make, range(len(shards))):
            advance(len(shards[number]), maker.tally.note())
    outcome = maker.tally.outcome(stage, report, rows=maker.stored, seconds=time.monotonic() - started)
    writer.finish(dataclasses.asdict(outcome))
    return maker.rejected


@dataclass(frozen=True, kw_only=True)
class _Draft:
    """A question with what both models wrote to it."""

    position: int
    problem: Problem
    by_teacher: tuple[Written, ...]
    by_student: tuple[Written, ...]

    @property
    def answers(self) -> list[Answer]:
        return [answer for answer, _ in (*self.by_teacher, *self.by_student)]


class GroupMaker:
    """Questions → groups, by calls to the pools; used by several threads at once."""

    def __init__(
        self, stage: Stage, pools: Replicas, rollout: Rollout, seed: int, teacher_digest: str, student_digest: str
    ) -> None:
        self._stage, self._rollout, self._seed = stage, rollout, seed
        self._teacher, self._student, self._judge = (pools.pools[role] for role in ("teacher", "student", "judge"))
        self._digests = teacher_digest, student_digest
        self._lock = threading.Lock()
        self.tally = _Tally()
        self.rejected: list[Rejected] = []
        self.stored = 0

    def groups(self, numbered: Sequence[tuple[int, Problem]]) -> list[RolloutGroup]:
        """The groups of these (position, problem), in their order."""
        rejected: list[Rejected] = []
        drafts = self._drafts(numbered, rejected)
        judged = self._judged(drafts)
        kept: list[tuple[_Draft, list[JudgedAnswer]]] = []
        for draft, answers in zip(drafts, judged, strict=True):
            readable = [one for one in answers if one.accuracy is not None]
            if len(readable) < 2:
                reason = f"the judge could read {len(readable)} of {len(answers)} answers"
                rejected.append(Rejected(row=draft.problem.id, reason=reason))
            else:
                kept.append((draft, readable))
        groups = self._scored(kept, rejected)
        with self._lock:
            for draft, answers in zip(drafts, judged, strict=True):
                self.tally.count(draft.problem, answers)
            self.tally.count_scores(groups)
            self.rejected += rejected
            self.stored += len(groups)
        return groups

    def _drafts(self, numbered: Sequence[tuple[int, Problem]], rejected: list[Rejected]) -> list[_Draft]:
        problems = [problem for _, problem in numbered]
        drafts = []
        for (position, problem), by_teacher, by_student in zip(
            numbered, self._answers("teacher", problems), self._answers("student", problems), strict=True
        ):
            if isinstance(by_teacher, Refused):
                rejected.append(_refused(problem, "teacher", by_teacher))
            elif isinstance(by_student, Refused):
                rejected.append(_refused(problem, "student", by_student))
            else:
                drafts.append(_Draft(position=position, problem=problem, by_teacher=by_teacher, by_student=by_student))
        return drafts

    def _answers(self, source: Source, problems: list[Problem]) -> list[tuple[Written, ...] | Refused]:
        pool, count = (
            (self._teacher, self._rollout.teacher_answers)
            if source == "teacher"
            else (self._student, self._rollout.student_answers)
        )
        if count == 0:
            return [()] * len(problems)
        seeds = [sampling_seed(self._seed, self._stage.index, source, problem.id) for problem in problems]
        drawn: list[tuple[Written, ...] | Refused] = pool.call("answer", problems, self._rollout.sampling, count, seeds)
        return drawn

    def _judged(self, drafts: Sequence[_Draft]) -> list[list[JudgedAnswer]]:
        cases = [Case.of(draft.problem, answer.text) for draft in drafts for answer in draft.answers]
        verdicts: Iterator[Verdict] = iter(self._judge.call("judge", cases) if cases else [])
        return [
            [
                JudgedAnswer(answer=answer, accuracy=verdict.accuracy, verdict=verdict.text)
                for answer, verdict in zip(draft.answers, verdicts, strict=False)  # each takes its own of the iterator
            ]
            for draft in drafts
        ]

    def _scored(
        self, kept: Sequence[tuple[_Draft, list[JudgedAnswer]]], rejected: list[Rejected]
    ) -> list[RolloutGroup]:
        tops = _completed(self._teacher, kept, [draft.by_teacher for draft, _ in kept])
        owns = _completed(self._student, kept, [draft.by_student for draft, _ in kept])
        teacher_digest, student_digest = self._digests
        groups = []
        for (draft, judged), top, own in zip(kept, tops, owns, strict=True):
            if isinstance(top, Refused):
                rejected.append(_refused(draft.problem, "teacher", top))
            elif isinstance(own, Refused):
                rejected.append(_refused(draft.problem, "student", own))
            else:
                groups.append(
                    RolloutGroup(
                        position=draft.position,
                        stage=self._stage.index,
                        mask_ratio=self._stage.ratio,
                        problem=draft.problem,
                        prompt_tokens=top[0].prompt_tokens,
                        answers=tuple(
                            ScoredAnswer(judged=one, teacher=by_teacher.top, reference_logprobs=by_student.own)
                            for one, by_teacher, by_student in zip(judged, top, own, strict=True)
                        ),
                        teacher_digest=teacher_digest,
                        student_digest=student_digest,
                    )
                )
        return groups


def _refused(problem: Problem, source: Source, refused: Refused) -> Rejected:
    return Rejected(row=problem.id, reason=f"the {source}'s engine refuses it: {refused.reason}")


def _completed(
    pool: Pool, kept: Sequence[tuple[_Draft, list[JudgedAnswer]]], written: Sequence[tuple[Written, ...]]
) -> list[list[Scored] | Refused]:
    """What a pool's model says of all answers of each question; it is asked about those that it has not written.

    Answers that are the same to the token have one score, so that rounding cannot prefer one of them.
    """
    known = [{answer.token_ids: scored for answer, scored in own} for own in written]
    missing = {
        index: answers
        for index, (_, judged) in enumerate(kept)
        if (answers := [one.answer for one in judged if one.answer.token_ids not in known[index]])
    }
    refused: dict[int, Refused] = {}
    if missing:
        asked = pool.call("score", [kept[index][0].problem for index in missing], list(missing.values()))
        for (index, answers), scores in zip(missing.items(), asked, strict=True):
            if isinstance(scores, Refused):
                refused[index] = scores
            else:
                known[index] |= {answer.token_ids: one for answer, one in zip(answers, scores, strict=True)}
    return [
        refused[index] if index in refused else [known[index][one.answer.token_ids] for one in judged]
        for index, (_, judged) in enumerate(kept)
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
