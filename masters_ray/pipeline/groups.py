"""Makes groups: questions → answers, verdicts, scores → rows of the store, by calls to the replicas."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from masters_ray import data, store
from masters_ray.pipeline.judging import judge_answers
from masters_ray.pipeline.parallel import run_all
from masters_ray.pipeline.recipes import Earlier, Recipe
from masters_ray.pipeline.tally import tally
from masters_ray.records import Answer, AnswerTally, JudgedAnswer, Problem, Rejected, RejectedBy, Row, Source
from masters_ray.replicas.model import ScoredBatch, TokenIds, WrittenBatch
from masters_ray.replicas.processes import Role
from masters_ray.replicas.spawn import Replicas

Batch = Sequence[tuple[int, Problem]]
"""Questions with their positions in the order in which the run asks them."""
AnswerIds = Sequence[Sequence[TokenIds]]
"""For each question of a batch, the token ids of some of its answers."""


@dataclass(frozen=True, kw_only=True)
class MadeBatch:
    """The rows, rejected questions and counts of a batch."""

    rows: pa.Table = field(default_factory=store.SCHEMA.empty_table)
    """Rows of store.SCHEMA, in the batch's order."""
    rejected: dict[int, Rejected] = field(default_factory=dict)
    """Position → why the question has no row."""
    tally: AnswerTally = field(default_factory=AnswerTally)


class GroupMaker:
    """Makes groups from questions by calls to the pools; thread-safe.

    In an online iteration the student is the behaviour policy, and scores the teacher's answers as well.
    """

    def __init__(self, recipe: Recipe, replicas: Replicas, teacher_digest: str, earlier: Earlier | None = None) -> None:
        self._recipe, self._pools, self._earlier = recipe, replicas.pools, earlier
        self._teacher_digest = teacher_digest
        # Until the student has learned, the student that writes is also the reference policy.
        learned = recipe.student_digest != recipe.settings.get("reference_digest")
        self._reference: Role = "reference" if learned and "reference" in self._pools else "student"
        self._scorers: list[Role] = ["teacher", self._reference]
        if recipe.online:
            self._scorers.append("student")
        self._calls: list[tuple[str, int, float]] = []
        """Pool and method, questions and seconds of each call that has returned."""

    def calls(self) -> dict[str, dict[str, float]]:
        """Returns "pool.method" → its sums of calls, questions and seconds; failed calls are not counted."""
        sums: dict[str, dict[str, float]] = {}
        for call, questions, seconds in self._calls:
            of_call = sums.setdefault(call, {"calls": 0, "questions": 0, "seconds": 0.0})
            of_call["calls"] += 1
            of_call["questions"] += questions
            of_call["seconds"] += seconds
        return sums

    def make(self, batch: Batch) -> MadeBatch:
        """Returns the rows of the questions, in their order, and the rejected questions. Raises ReplicaLostError."""
        work = _BatchWork()
        embed = self._recipe.rollout.pictures == "embed"
        for position, problem in batch:
            try:
                pictured = data.with_embedded_pictures(problem) if embed else problem
                work.questions.append(_Question(position, problem.digest, pictured))
            except data.BadPictureError as error:
                work.rejected[position] = Rejected(row=problem.id, reason=str(error), kind="picture")
        work.shared = self._pools["teacher"].share([one.problem for one in work.questions])
        self._write(work)
        self._judge(work)
        self._score(work)
        return self._made(work)

    @contextmanager
    def _timed(self, call: str, questions: int) -> Iterator[None]:
        began = time.monotonic()
        yield
        self._calls.append((call, questions, time.monotonic() - began))

    def _call(self, role: Role, method: str, questions: int, *arguments: Any) -> Any:
        with self._timed(f"{role}.{method}", questions):
            return self._pools[role].call(method, *arguments)

    def _write(self, work: _BatchWork) -> None:
        """Has teacher and student write answers; takes the student's from earlier rows where there are any."""
        rollout = self._recipe.rollout
        if self._earlier is not None:
            work.add_written("student", self._taken_over(self._earlier, work.questions))
        calls: dict[Source, Callable[[], WrittenBatch]] = {}
        counts: dict[Source, int] = {"teacher": rollout.teacher_answers, "student": rollout.student_answers}
        for source, count in counts.items():
            seeds = [
                None if source in one.answers else self._recipe.seed_of(source, one.problem.id)
                for one in work.questions
            ]
            if count and any(seed is not None for seed in seeds):
                asked = (work.shared, rollout.sampling, count, seeds)
                calls[source] = partial(self._call, source, "answer", len(seeds), *asked)
        for source, written in zip(calls, run_all(list(calls.values())), strict=True):
            work.add_written(source, written)

    def _taken_over(self, earlier: Earlier, questions: Sequence[_Question]) -> WrittenBatch:
        """Returns the student's answers in earlier rows of the same questions, and notes their verdicts if the judge is
        the same. If another judge could not read an answer, it is not stored, and the question is answered again."""
        found = earlier.rows.rows([one.digest for one in questions])
        answers: list[tuple[Answer, ...]] = [()] * len(questions)
        prompt_tokens, logprobs = [0] * len(questions), list[np.ndarray]()
        for index, one in enumerate(questions):
            if one.digest not in found:
                continue
            [group] = store.groups(found[one.digest])
            stored = [answer for answer in group.answers if answer.judged.answer.source == "student"]
            if earlier.same_judge:
                one.known = [answer.judged for answer in stored]
            elif len(stored) < self._recipe.rollout.student_answers:
                continue
            answers[index] = tuple(answer.judged.answer for answer in stored)
            prompt_tokens[index] = group.prompt_tokens
            logprobs += [answer.reference_logprobs for answer in stored]
        scored = ScoredBatch(prompt_tokens=prompt_tokens, refused={}, tokens=pa.array(logprobs, store.LOGPROBS))
        return WrittenBatch(answers=answers, scored=scored)

    def _judge(self, work: _BatchWork) -> None:
        """Judges the answers of the questions that no engine has refused; rejects those with fewer than two readable
        verdicts."""
        settings, questions = self._recipe.judge, work.questions
        written = [
            [] if one.position in work.rejected else [*one.answers.get("teacher", ()), *one.answers.get("student", ())]
            for one in questions
        ]
        problems, known = [one.problem for one in questions], [one.known for one in questions]
        with self._timed("judge.judge", len(questions)):
            judged = judge_answers(settings, self._pools, problems, work.shared, written, known)
        for one, own in zip(questions, judged, strict=True):
            one.judged = own
            readable = [
                answer
                for answer in own
                if answer.accuracy is not None and (answer.reasoning is not None or not settings.reasoning)
            ]
            if len(readable) >= 2:
                one.stored = readable
            else:
                work.reject(one, f"the judge could read {len(readable)} of {len(own)} answers", "judge")

    def _score(self, work: _BatchWork) -> None:
        """Has each model score the answers that it did not score while writing."""
        wanted = work.stored_ids()
        missing = {role: work.missing(role, wanted) for role in self._scorers}
        asked = {role: answers for role, answers in missing.items() if any(answers)}
        calls = [
            partial(self._call, role, "score", sum(map(bool, answers)), work.shared, answers)
            for role, answers in asked.items()
        ]
        for (role, answers), scored in zip(asked.items(), run_all(calls), strict=True):
            work.add_scores(role, answers, scored)

    def _made(self, work: _BatchWork) -> MadeBatch:
        """Returns a row for each question that is not rejected, and counts of all that were judged."""
        recipe, stage = self._recipe, self._recipe.stage
        wanted = work.stored_ids()
        stored = {index: one for index, one in enumerate(work.questions) if wanted[index]}
        questions = [
            Row(
                position=one.position,
                stage=stage.index,
                mask_ratio=stage.ratio,
                problem=one.problem,
                prompt_tokens=work.prompt_tokens[self._reference, index],
                teacher_digest=self._teacher_digest,
                student_digest=recipe.student_digest,
                version=recipe.online.weights.version if recipe.online else None,
            )
            for index, one in stored.items()
        ]
        rows, left_out = store.SCHEMA.empty_table(), np.empty(0, np.float32)
        if stored:
            top, reference, *behaviour = (work.take(role, wanted) for role in self._scorers)
            rows = store.table(questions, [one.stored for one in stored.values()], top, reference, *behaviour)
            left_out = store.decoded(top).left_out
        counts = tally(
            [(one.problem, one.judged) for one in work.questions if one.judged],
            recipe.judge,
            rows=len(rows),
            tokens=len(left_out),
            tail_mass_sum=float(left_out.sum()),
        )
        return MadeBatch(rows=rows, rejected=work.rejected, tally=counts)


@dataclass
class _Question:
    """The state of a question while its row is made."""

    position: int
    digest: str
    """Digest of the question as the data hold it."""
    problem: Problem
    answers: dict[Source, tuple[Answer, ...]] = field(default_factory=dict)
    known: list[JudgedAnswer] = field(default_factory=list)
    """Answers of the student whose verdicts are taken over."""
    judged: list[JudgedAnswer] = field(default_factory=list)
    stored: list[JudgedAnswer] = field(default_factory=list)
    """The answers in its row: two or more with a readable verdict."""


class _BatchWork:
    """The state of a batch while its rows are made, with each model's scores so far. Answers with equal token ids share
    one score, so that rounding cannot make their scores differ."""

    def __init__(self) -> None:
        self.questions: list[_Question] = []
        self.rejected: dict[int, Rejected] = {}
        """Position → why the question gets no row."""
        self.shared: Any = None
        """The problems, as ``Pool.share`` returned them."""
        self.prompt_tokens: dict[tuple[Role, int], int] = {}
        """Model and index of a question → its prompt's length, pictures included."""
        self._scores: dict[tuple[Role, int, TokenIds], pa.Array] = {}
        """Model, index of a question and token ids of an answer → its scores, an array of length 1."""

    def reject(self, question: _Question, reason: str, kind: RejectedBy) -> None:
        """Sets a question aside, unless it already is."""
        rejected = Rejected(row=question.problem.id, reason=reason, kind=kind)
        self.rejected.setdefault(question.position, rejected)

    def add_written(self, source: Source, written: WrittenBatch) -> None:
        """Adds answers with their scores."""
        for one, answers in zip(self.questions, written.answers, strict=True):
            if answers:
                one.answers[source] = answers
        self.add_scores(source, [[one.token_ids for one in own] for own in written.answers], written.scored)

    def add_scores(self, role: Role, answers: AnswerIds, scored: ScoredBatch) -> None:
        """Adds a model's scores of ``answers``, and rejects the questions that it refused."""
        given = [(index, ids) for index, own in enumerate(answers) if index not in scored.refused for ids in own]
        for place, (index, ids) in enumerate(given):
            self._scores.setdefault((role, index, ids), scored.tokens.slice(place, 1))
        self.prompt_tokens |= {(role, index): count for index, count in enumerate(scored.prompt_tokens) if count}
        for index, refused in scored.refused.items():
            by = "" if refused.kind == "picture" else f"the {role}'s engine refuses it: "
            self.reject(self.questions[index], by + refused.reason, refused.kind)

    def stored_ids(self) -> list[list[TokenIds]]:
        """Returns the token ids of the answers in each question's row; of a rejected question none."""
        return [
            [] if one.position in self.rejected else [answer.answer.token_ids for answer in one.stored]
            for one in self.questions
        ]

    def missing(self, role: Role, wanted: AnswerIds) -> list[list[TokenIds]]:
        """Returns the wanted answers without a score by the model, each once."""
        return [
            [ids for ids in dict.fromkeys(own) if (role, index, ids) not in self._scores]
            for index, own in enumerate(wanted)
        ]

    def take(self, role: Role, wanted: AnswerIds) -> pa.Array:
        """Returns the model's scores of the wanted answers, question after question."""
        return pa.concat_arrays([self._scores[role, index, ids] for index, own in enumerate(wanted) for ids in own])
