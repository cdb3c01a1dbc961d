"""Makes groups: questions → answers, verdicts, scores → rows of the store, by calls to the replicas."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from masters_ray import data, store
from masters_ray.pipeline.parallel import at_once
from masters_ray.pipeline.recipes import Earlier, Recipe
from masters_ray.pipeline.tally import tally
from masters_ray.records import Answer, AnswerTally, JudgedAnswer, Problem, Refused, Rejected, Row, Source
from masters_ray.replicas.judge import Verdict
from masters_ray.replicas.processes import Role
from masters_ray.replicas.rollout import ScoredBatch, TokenIds, WrittenBatch
from masters_ray.replicas.spawn import Replicas

Batch = Sequence[tuple[int, Problem]]
"""Questions with their positions in the order in which the run asks them."""
Wanted = Mapping[int, Sequence[TokenIds]]
"""Index of a question in the batch → token ids of its answers."""


@dataclass(frozen=True, kw_only=True)
class MadeBatch:
    """The rows, rejected questions and counts of a batch."""

    rows: pa.Table = field(default_factory=store.SCHEMA.empty_table)
    """Rows of store.SCHEMA, in the batch's order."""
    rejected: dict[int, Rejected] = field(default_factory=dict)
    """Position → why the question has no row."""
    tally: AnswerTally = field(default_factory=AnswerTally)


class CallClock:
    """Sums up the seconds of calls by pool and method; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sums: dict[str, dict[str, float]] = {}

    @contextmanager
    def timed(self, call: str, questions: int) -> Iterator[None]:
        """Times the block as one call. call: pool and method, for example "teacher.answer"."""
        began = time.monotonic()
        yield
        news = {"calls": 1.0, "questions": float(questions), "seconds": time.monotonic() - began}
        with self._lock:
            sums = self._sums.setdefault(call, dict.fromkeys(news, 0.0))
            for name, value in news.items():
                sums[name] += value

    def read(self) -> dict[str, dict[str, float]]:
        """Returns "pool.method" → its sums of calls, questions and seconds; failed calls are not counted."""
        with self._lock:
            return {name: dict(sums) for name, sums in self._sums.items()}


class GroupMaker:
    """Makes groups from questions by calls to the pools; thread-safe.

    In an online iteration the student is the behaviour policy, and scores the teacher's answers as well.
    """

    def __init__(self, recipe: Recipe, replicas: Replicas, teacher_digest: str, earlier: Earlier | None = None) -> None:
        self.clock = CallClock()
        self._recipe, self._pools, self._earlier = recipe, replicas.pools, earlier
        self._teacher_digest = teacher_digest
        # Until the student has learned, the student that writes is also the reference policy.
        learned = recipe.student_digest != recipe.made_with.get("reference_digest")
        self._reference: Role = "reference" if learned and "reference" in self._pools else "student"
        self._scorers: list[Role] = ["teacher", self._reference]
        if recipe.online:
            self._scorers.append("student")

    def make(self, batch: Batch) -> MadeBatch:
        """Returns the rows of the questions, in their order, and the rejected questions. Raises ReplicaLostError."""
        questions, rejected = self._opened(batch)
        if not questions:
            return MadeBatch(rejected=rejected)
        scores = {role: _ModelScores(len(questions)) for role in dict.fromkeys(("teacher", "student", *self._scorers))}
        shared = self._pools["teacher"].share([one.problem for one in questions])
        self._write(questions, scores, shared)
        self._judge([one for one in questions if not _refusal(one, scores)], questions, shared)
        wanted = {one.index: one.readable for one in questions if len(one.readable) >= 2}
        tokens = {index: [one.answer.token_ids for one in readable] for index, readable in wanted.items()}
        at_once([partial(self._score, role, scores[role], tokens, shared) for role in dict.fromkeys(self._scorers)])
        for one in questions:
            if (refusal := _refusal(one, scores)) is not None:
                rejected[one.position] = Rejected(row=one.problem.id, reason=refusal.reason, kind=refusal.kind)
            elif one.index not in wanted:
                reason = f"the judge could read {len(one.readable)} of {len(one.judged)} answers"
                rejected[one.position] = Rejected(row=one.problem.id, reason=reason, kind="judge")
        return self._made(questions, scores, rejected)

    def _opened(self, batch: Batch) -> tuple[list[_Question], dict[int, Rejected]]:
        """Returns the questions, their pictures embedded if rollout.pictures=embed, and rejects unreadable pictures."""
        found: list[_Question] = []
        rejected: dict[int, Rejected] = {}
        for position, problem in batch:
            try:
                embed = self._recipe.rollout.pictures == "embed"
                pictured = data.with_embedded_pictures(problem) if embed else problem
            except data.BadPictureError as error:
                rejected[position] = Rejected(row=problem.id, reason=str(error), kind="picture")
            else:
                found.append(_Question(len(found), position, problem.digest, pictured))
        return found, rejected

    def _write(self, questions: Sequence[_Question], scores: Mapping[Role, _ModelScores], shared: Any) -> None:
        """Has teacher and student write answers; takes the student's from earlier rows where there are any."""
        rollout = self._recipe.rollout
        if self._earlier is not None:
            self._take_over(self._earlier, questions, scores["student"])
        counts: dict[Source, int] = {"teacher": rollout.teacher_answers, "student": rollout.student_answers}

        def write(source: Source, seeds: list[int | None]) -> tuple[Source, WrittenBatch]:
            with self.clock.timed(f"{source}.answer", len(seeds)):
                return source, self._pools[source].call("answer", shared, rollout.sampling, counts[source], seeds)

        asked: dict[Source, list[int | None]] = {
            source: [
                None if source in one.answers else self._recipe.seed_of(source, one.problem.id) for one in questions
            ]
            for source, count in counts.items()
            if count
        }
        calls = [
            partial(write, source, seeds) for source, seeds in asked.items() if any(one is not None for one in seeds)
        ]
        for source, written in at_once(calls):
            for question, answers in zip(questions, written.answers, strict=True):
                question.answers.setdefault(source, answers)
            scores[source].add([[one.token_ids for one in own] for own in written.answers], written.scored)

    def _take_over(self, earlier: Earlier, questions: Sequence[_Question], scores: _ModelScores) -> None:
        """Takes the student's answers from earlier rows of the same questions, and their verdicts if the judge is the
        same. If another judge could not read an answer, it is not stored, and the question is answered again."""
        found = earlier.rows.rows([one.digest for one in questions])
        token_ids: list[list[TokenIds]] = [[] for _ in questions]
        prompt_tokens = [0] * len(questions)
        logprobs: list[np.ndarray] = []
        for one in questions:
            if one.digest not in found:
                continue
            [group] = store.groups(found[one.digest])
            stored = [answer for answer in group.answers if answer.judged.answer.source == "student"]
            if not earlier.same_judge and len(stored) < self._recipe.rollout.student_answers:
                continue
            one.answers["student"] = tuple(answer.judged.answer for answer in stored)
            if earlier.same_judge:
                one.known = {
                    answer.judged.answer.text: Verdict(
                        accuracy=answer.judged.accuracy, text=answer.judged.verdict, reasoning=answer.judged.reasoning
                    )
                    for answer in stored
                }
            token_ids[one.index] = [answer.judged.answer.token_ids for answer in stored]
            prompt_tokens[one.index] = group.prompt_tokens
            logprobs += [answer.reference_logprobs for answer in stored]
        tokens = pa.array(logprobs, store.LOGPROBS)
        scores.add(token_ids, ScoredBatch(prompt_tokens=prompt_tokens, refused={}, tokens=tokens))

    def _judge(self, answered: Sequence[_Question], questions: Sequence[_Question], shared: Any) -> None:
        """Judges the answers of the questions in ``answered``, which no engine has refused."""
        for one in answered:
            one.written = [answer for source in ("teacher", "student") for answer in one.answers.get(source, ())]
        judging = self._recipe.judging
        with self.clock.timed("judge.judge", len(questions)):
            problems, written = [one.problem for one in questions], [one.written for one in questions]
            verdicts = judging.verdicts(self._pools, problems, shared, written, [one.known for one in questions])
        for one, said in zip(questions, verdicts, strict=True):
            one.judged = [
                JudgedAnswer(
                    answer=answer, accuracy=verdict.accuracy, verdict=verdict.text, reasoning=verdict.reasoning
                )
                for answer, verdict in zip(one.written, said, strict=True)
            ]
            one.readable = [
                answer
                for answer in one.judged
                if answer.accuracy is not None and (answer.reasoning is not None or not judging.settings.reasoning)
            ]

    def _score(self, role: Role, scores: _ModelScores, wanted: Wanted, shared: Any) -> None:
        """Has a model score the answers that it did not score while writing."""
        missing = scores.missing(wanted)
        if any(missing):
            with self.clock.timed(f"{role}.score", sum(map(bool, missing))):
                scored: ScoredBatch = self._pools[role].call("score", shared, missing)
            scores.add(missing, scored)

    def _made(
        self,
        questions: Sequence[_Question],
        scores: Mapping[Role, _ModelScores],
        rejected: dict[int, Rejected],
    ) -> MadeBatch:
        kept = [one for one in questions if one.position not in rejected]
        wanted = {one.index: [answer.answer.token_ids for answer in one.readable] for one in kept}
        recipe, stage = self._recipe, self._recipe.stage
        questions_made = [
            Row(
                position=one.position,
                stage=stage.index,
                mask_ratio=stage.ratio,
                problem=one.problem,
                prompt_tokens=scores[self._reference].prompt_tokens[one.index],
                teacher_digest=self._teacher_digest,
                student_digest=recipe.student_digest,
                version=recipe.online.version if recipe.online else None,
            )
            for one in kept
        ]
        rows, left_out = store.SCHEMA.empty_table(), np.empty(0, np.float32)
        if kept:
            top, reference, *behaviour = (scores[role].take(wanted) for role in self._scorers)
            rows = store.table(questions_made, [one.readable for one in kept], top, reference, *behaviour)
            left_out = store.decoded(top).left_out
        counts = tally(
            [(one.problem, one.judged) for one in questions if not _refusal(one, scores)],
            recipe.judging.settings,
            rows=len(rows),
            tokens=len(left_out),
            tail_mass_sum=float(left_out.sum()),
        )
        return MadeBatch(rows=rows, rejected=rejected, tally=counts)


@dataclass
class _Question:
    """The state of a question while its row is made."""

    index: int
    """Index in its batch."""
    position: int
    digest: str
    """Digest of the question as the data hold it."""
    problem: Problem
    answers: dict[Source, tuple[Answer, ...]] = field(default_factory=dict)
    known: dict[str, Verdict] = field(default_factory=dict)
    """Text → verdict, taken over with the student's answers."""
    written: list[Answer] = field(default_factory=list)
    """All answers, the teacher's first."""
    judged: list[JudgedAnswer] = field(default_factory=list)
    readable: list[JudgedAnswer] = field(default_factory=list)
    """Answers with a readable verdict, which can be stored; a row needs two."""


def _refusal(question: _Question, scores: Mapping[Role, _ModelScores]) -> Refused | None:
    for role, said in scores.items():
        if (refused := said.refused.get(question.index)) is not None:
            told = refused.reason if refused.kind == "picture" else f"the {role}'s engine refuses it: {refused.reason}"
            return Refused(reason=told, kind=refused.kind)
    return None


class _ModelScores:
    """A model's scores of the answers of a batch so far. Answers with equal token ids share one score, so that rounding
    cannot make their scores differ."""

    def __init__(self, questions: int) -> None:
        self.prompt_tokens = [0] * questions
        """Prompt length of each question, pictures included; 0 where the model was not asked."""
        self.refused: dict[int, Refused] = {}
        """Index of a question → why the engine refuses it."""
        self._places: list[dict[TokenIds, int]] = [{} for _ in range(questions)]
        self._parts: list[pa.Array] = []
        self._size = 0

    def add(self, answers: Sequence[Sequence[TokenIds]], scored: ScoredBatch) -> None:
        """Adds scores. answers: for each question of the batch, the token ids of the scored answers."""
        self.refused |= scored.refused
        for index, own in enumerate(answers):
            if index in scored.refused:
                continue
            self.prompt_tokens[index] = scored.prompt_tokens[index] or self.prompt_tokens[index]
            for token_ids in own:
                self._places[index].setdefault(token_ids, self._size)
                self._size += 1
        self._parts.append(scored.tokens)

    def missing(self, wanted: Wanted) -> list[list[TokenIds]]:
        """Returns, for each question of the batch, the wanted answers without a score, each once."""
        return [
            [ids for ids in dict.fromkeys(wanted.get(index, ())) if ids not in places]
            for index, places in enumerate(self._places)
        ]

    def take(self, wanted: Wanted) -> pa.Array:
        """Returns the scores of the wanted answers, question after question."""
        places = [self._places[index][token_ids] for index, own in wanted.items() for token_ids in own]
        return pa.concat_arrays(self._parts).take(pa.array(places))
