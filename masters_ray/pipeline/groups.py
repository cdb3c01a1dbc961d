"""Questions → answers, verdicts, scores → groups, by calls to the replicas."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from masters_ray.actors.judge import Case, Verdict
from masters_ray.actors.pool import Pool
from masters_ray.actors.replicas import Replicas
from masters_ray.config import Rollout
from masters_ray.masks import MaskReport
from masters_ray.pipeline.tally import Tally
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
    Written,
)
from masters_ray.schedule import Stage

Batch = Sequence[tuple[int, Problem]]
"""Questions with their positions in the seeded order of the run's data."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a stage's rows depend on beside its questions; a store goes on only with the same."""

    stage: Stage
    rollout: Rollout
    seed: int
    student_digest: str
    made_with: Mapping[str, Any]
    """Whatever else of the configuration and the checkpoints decides the rows."""

    def key(self, report: MaskReport) -> dict[str, Any]:
        """The same as plain values, for a store. report: the teacher as it is masked."""
        rollout = dataclasses.asdict(self.rollout)
        del rollout["batch_rows"], rollout["max_restarts"]
        teacher = {"teacher_digest": report.digest, "mask_ratio": self.stage.ratio}
        return {"stage": self.stage.index, **teacher, "student_digest": self.student_digest, "seed": self.seed} | {
            "rollout": rollout,
            **self.made_with,
        }


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


@dataclass(frozen=True, kw_only=True)
class Made:
    """What came of a batch."""

    groups: list[RolloutGroup]
    rejected: dict[int, Rejected]
    """By position: the questions of the batch that have no group."""
    tally: Tally


class GroupMaker:
    """Questions → groups, by calls to the pools; used by several threads at once."""

    def __init__(self, recipe: Recipe, pools: Replicas, teacher_digest: str) -> None:
        self._stage, self._rollout, self._seed = recipe.stage, recipe.rollout, recipe.seed
        self._teacher, self._student, self._judge = (pools.pools[role] for role in ("teacher", "student", "judge"))
        self._digests = teacher_digest, recipe.student_digest

    def make(self, batch: Batch) -> Made:
        """The groups of these questions, in their order, and those that have none. Raises ReplicaLostError."""
        rejected: dict[int, Rejected] = {}
        drafts = self._drafts(batch, rejected)
        judged = self._judged(drafts)
        kept: list[tuple[_Draft, list[JudgedAnswer]]] = []
        for draft, answers in zip(drafts, judged, strict=True):
            readable = [one for one in answers if one.accuracy is not None]
            if len(readable) < 2:
                reason = f"the judge could read {len(readable)} of {len(answers)} answers"
                rejected[draft.position] = Rejected(row=draft.problem.id, reason=reason)
            else:
                kept.append((draft, readable))
        groups = self._scored(kept, rejected)
        tally = Tally.of(((draft.problem, answers) for draft, answers in zip(drafts, judged, strict=True)), groups)
        return Made(groups=groups, rejected=rejected, tally=tally)

    def _drafts(self, batch: Batch, rejected: dict[int, Rejected]) -> list[_Draft]:
        problems = [problem for _, problem in batch]
        drafts = []
        for (position, problem), by_teacher, by_student in zip(
            batch, self._answers("teacher", problems), self._answers("student", problems), strict=True
        ):
            if isinstance(by_teacher, Refused):
                rejected[position] = _refused(problem, "teacher", by_teacher)
            elif isinstance(by_student, Refused):
                rejected[position] = _refused(problem, "student", by_student)
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
        self, kept: Sequence[tuple[_Draft, list[JudgedAnswer]]], rejected: dict[int, Rejected]
    ) -> list[RolloutGroup]:
        tops = _completed(self._teacher, kept, [draft.by_teacher for draft, _ in kept])
        owns = _completed(self._student, kept, [draft.by_student for draft, _ in kept])
        teacher_digest, student_digest = self._digests
        groups = []
        for (draft, judged), top, own in zip(kept, tops, owns, strict=True):
            if isinstance(top, Refused):
                rejected[draft.position] = _refused(draft.problem, "teacher", top)
            elif isinstance(own, Refused):
                rejected[draft.position] = _refused(draft.problem, "student", own)
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


def sampling_seed(seed: int, stage: int, source: Source, problem_id: str) -> int:
    """The seed of one question's answers: the same wherever and beside whatever they are sampled."""
    name = f"{seed}/{stage}/{source}/{problem_id}".encode()
    return int.from_bytes(hashlib.sha256(name).digest()[:4], "big") >> 1
