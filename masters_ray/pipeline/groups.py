"""Makes groups: questions → answers, verdicts, scores → rows of the store, by calls to the replicas."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from masters_ray import data, store
from masters_ray.config import Judge, JudgedBy
from masters_ray.method.marking import right, rule_of
from masters_ray.pipeline.parallel import run_all
from masters_ray.pipeline.recipes import Recipe
from masters_ray.pipeline.tally import tally
from masters_ray.records import Answer, AnswerTally, JudgedAnswer, Problem, Refused, Rejected, Row, Source
from masters_ray.replicas.judge import Verdict
from masters_ray.replicas.model import ScoredBatch, TokenIds, WrittenBatch
from masters_ray.replicas.processes import Role
from masters_ray.replicas.spawn import Replicas

Batch = Sequence[tuple[int, Problem]]  # questions with their positions in the order in which the run asks them
JUDGES: Mapping[JudgedBy, Role] = {"student": "judge", "teacher": "teacher_judge"}  # judging model → its replicas' role


@dataclass(frozen=True, kw_only=True)
class MadeBatch:
    rows: pa.Table = field(default_factory=store.SCHEMA.empty_table)  # rows of store.SCHEMA, in the batch's order
    rejected: dict[int, Rejected] = field(default_factory=dict)  # position → why the question has no row
    tally: AnswerTally = field(default_factory=AnswerTally)
    reused: int = 0
    """Rows that were taken over."""


@dataclass
class _Question:
    """The state of a question while its row is made. Answers with equal token ids share one score, so that rounding
    cannot make their scores differ."""

    position: int
    digest: str  # digest of the question as the data hold it
    problem: Problem
    answers: dict[Source, tuple[Answer, ...]] = field(default_factory=dict)
    verdicts: dict[tuple[JudgedBy, str], Verdict] = field(default_factory=dict)  # by judge and text of an answer
    judged: list[JudgedAnswer] = field(default_factory=list)
    stored: list[JudgedAnswer] = field(default_factory=list)  # answers in its row: two or more, with readable verdicts
    prompt_tokens: dict[Role, int] = field(default_factory=dict)  # model → length of the prompt, pictures included
    scores: dict[tuple[Role, TokenIds], int] = field(default_factory=dict)
    """Model and token ids of an answer → place of its scores in ``_Scores``."""
    rejected: Rejected | None = None  # why it gets no row

    def reject(self, refused: Refused) -> None:
        if self.rejected is None:
            self.rejected = Rejected(row=self.problem.id, reason=refused.reason, kind=refused.kind)

    @property
    def written(self) -> list[Answer]:
        """The answers to judge: none once the question is rejected."""
        if self.rejected is not None:
            return []
        return [*self.answers.get("teacher", ()), *self.answers.get("student", ())]

    def texts_for(self, judge: JudgedBy, settings: Judge) -> Iterable[str]:
        """Returns the texts that ``judge`` judges, each once."""
        return dict.fromkeys(one.text for one in self.written if settings.of(one.source, self.problem.rule) == judge)

    def judge(self, answer: Answer, settings: Judge) -> JudgedAnswer:
        """Returns an answer with its verdict: the rule's, or one of ``verdicts``."""
        by = settings.of(answer.source, self.problem.rule)
        if by == "rule":
            accuracy = int(right(answer.text, self.problem, settings.rule))
            told = f"by rule ({rule_of(self.problem, settings.rule)})"
            return JudgedAnswer(answer=answer, accuracy=accuracy, verdict=told)
        one = self.verdicts[by, answer.text]
        return JudgedAnswer(answer=answer, accuracy=one.accuracy, verdict=one.text, reasoning=one.reasoning)

    def unscored(self, role: Role) -> list[TokenIds]:
        """Returns the answers to store that the model has not scored, each once."""
        ids = dict.fromkeys(one.answer.token_ids for one in self.stored) if self.rejected is None else ()
        return [one for one in ids if (role, one) not in self.scores]


class GroupMaker:
    """Makes groups from questions by calls to the pools; thread-safe.

    In an online iteration the student is the behaviour policy, and scores the teacher's answers as well.
    """

    def __init__(
        self, recipe: Recipe, replicas: Replicas, teacher_digest: str, earlier: store.Lookup | None = None
    ) -> None:
        """earlier: rows whose student answers are taken over."""
        self._recipe, self._pools, self._earlier = recipe, replicas.pools, earlier
        self._teacher_digest = teacher_digest
        # Until the student has learned, the student that writes is also the reference policy.
        learned = recipe.student_digest != recipe.settings.get("reference_digest")
        self._reference: Role = "reference" if learned and "reference" in self._pools else "student"
        self._scorers: list[Role] = ["teacher", self._reference]
        if recipe.online:
            self._scorers.append("student")
        self._calls: dict[str, dict[str, float]] = {}
        self._noting = threading.Lock()

    def calls(self) -> dict[str, dict[str, float]]:
        """Returns "pool.method" → its sums, as ``OnlineStep.calls``; failed calls are not counted."""
        with self._noting:
            return {call: dict(sums) for call, sums in self._calls.items()}

    def make(self, batch: Batch) -> MadeBatch:
        """Returns the rows of the questions, in their order, and the rejected questions. Raises ReplicaLostError."""
        questions, rejected = list[_Question](), dict[int, Rejected]()
        embed = self._recipe.rollout.pictures == "embed"
        for position, problem in batch:
            try:
                pictured = data.with_embedded_pictures(problem) if embed else problem
                questions.append(_Question(position, problem.digest, pictured))
            except data.BadPictureError as error:
                rejected[position] = Rejected(row=problem.id, reason=str(error), kind="picture")
        shared = self._pools["teacher"].share([one.problem for one in questions])
        scores = _Scores(questions)
        self._write(scores, shared)
        self._judge(questions, shared)
        self._score(scores, shared)
        rows = self._rows([one for one in questions if one.rejected is None], scores)
        rejected |= {one.position: one.rejected for one in questions if one.rejected is not None}
        judged = [(one.problem, one.judged) for one in questions if one.judged]
        return MadeBatch(rows=rows, rejected=rejected, tally=tally(judged, self._recipe.judge, rows))

    @contextmanager
    def _timed(self, call: str, questions: int) -> Iterator[list[int]]:
        """Notes a call that returns. Yields the list to which the block adds the numbers of its tokens."""
        began, tokens = time.monotonic(), list[int]()
        yield tokens
        seconds = time.monotonic() - began
        counts = {"calls": 1, "questions": questions, "seconds": seconds, "tokens": sum(tokens)}
        with self._noting:
            sums = self._calls.setdefault(call, dict.fromkeys(counts, 0))
            for name, count in counts.items():
                sums[name] += count

    def _answer(self, source: Source, *asked: Any) -> WrittenBatch:
        with self._timed(f"{source}.answer", len(asked[-1])) as tokens:
            written: WrittenBatch = self._pools[source].call("answer", *asked)
            tokens += [len(one.token_ids) for own in written.answers for one in own]
        return written

    def _score_missing(self, role: Role, shared: Any, answers: Sequence[Sequence[TokenIds]]) -> ScoredBatch:
        with self._timed(f"{role}.score", len([own for own in answers if own])) as tokens:
            scored: ScoredBatch = self._pools[role].call("score", shared, answers)
            tokens += [len(ids) for own in answers for ids in own]
        return scored

    def _write(self, scores: "_Scores", shared: Any) -> None:
        """Has teacher and student write answers; takes the student's from earlier rows where there are any."""
        rollout, questions = self._recipe.rollout, scores.questions
        if self._earlier is not None:
            scores.add_written("student", _taken_over(self._earlier, questions, self._recipe.judge.of_student))
        calls: dict[Source, Callable[[], WrittenBatch]] = {}
        counts: dict[Source, int] = {"teacher": rollout.teacher_answers, "student": rollout.student_answers}
        for source, count in counts.items():
            seeds = [
                None if source in one.answers else self._recipe.seed_of(source, one.problem.id) for one in questions
            ]
            if count and any(seed is not None for seed in seeds):
                calls[source] = partial(self._answer, source, shared, rollout.sampling, count, seeds)
        for source, written in zip(calls, run_all(list(calls.values())), strict=True):
            scores.add_written(source, written)

    def _judge(self, questions: Sequence[_Question], shared: Any) -> None:
        """Judges the answers of the questions that no engine has refused, equal texts of a question once; rejects those
        with fewer than two readable verdicts."""
        settings = self._recipe.judge
        with self._timed("judge.judge", len(questions)) as tokens:
            for judge, role in JUDGES.items():
                texts = [
                    [text for text in one.texts_for(judge, settings) if (judge, text) not in one.verdicts]
                    for one in questions
                ]
                if not any(texts):
                    continue
                said: list[list[Verdict]] = self._pools[role].call("judge", shared, texts, settings.reasoning)
                tokens += [one.tokens for own in said for one in own]
                for one, own, verdicts in zip(questions, texts, said, strict=True):
                    one.verdicts |= {(judge, text): found for text, found in zip(own, verdicts, strict=True)}
        for one in questions:
            one.judged = [one.judge(answer, settings) for answer in one.written]
            one.stored = [
                answer
                for answer in one.judged
                if answer.accuracy is not None and (answer.reasoning is not None or not settings.reasoning)
            ]
            if (readable := len(one.stored)) < 2:
                reason = f"the judge could read {readable} of {len(one.judged)} answers"
                one.reject(Refused(reason=reason, kind="judge"))

    def _score(self, scores: "_Scores", shared: Any) -> None:
        """Has each model score the answers that it did not score while writing."""
        missing = {role: [one.unscored(role) for one in scores.questions] for role in self._scorers}
        asked = {role: answers for role, answers in missing.items() if any(answers)}
        calls = [partial(self._score_missing, role, shared, answers) for role, answers in asked.items()]
        for (role, answers), scored in zip(asked.items(), run_all(calls), strict=True):
            scores.add(role, answers, scored)

    def _rows(self, questions: Sequence[_Question], scores: "_Scores") -> pa.Table:
        if not questions:
            return store.SCHEMA.empty_table()
        recipe = self._recipe
        rows = [
            Row(
                position=one.position,
                stage=recipe.stage.index,
                mask_ratio=recipe.stage.ratio,
                problem=one.problem,
                prompt_tokens=one.prompt_tokens[self._reference],
                teacher_digest=self._teacher_digest,
                student_digest=recipe.student_digest,
                version=recipe.online.weights.version if recipe.online else None,
            )
            for one in questions
        ]
        top, reference, *behaviour = (
            scores.at(role, [one.scores[role, answer.answer.token_ids] for one in questions for answer in one.stored])
            for role in self._scorers
        )
        return store.table(rows, [one.stored for one in questions], top, reference, *behaviour)


def _taken_over(earlier: store.Lookup, questions: Sequence[_Question], by: JudgedBy) -> WrittenBatch:
    """Returns the student's answers in earlier rows of the same questions, and copies their
    verdicts, given by judge ``by``, into the questions."""
    found = earlier.rows([one.digest for one in questions])
    answers: list[tuple[Answer, ...]] = []
    prompt_tokens, logprobs = list[int](), list[np.ndarray]()
    for one in questions:
        groups = store.groups(found[one.digest]) if one.digest in found else []
        stored = [answer for group in groups for answer in group.answers if answer.judged.answer.source == "student"]
        for judged in (answer.judged for answer in stored):
            verdict = Verdict(accuracy=judged.accuracy, text=judged.verdict, reasoning=judged.reasoning)
            one.verdicts[by, judged.answer.text] = verdict
        answers.append(tuple(answer.judged.answer for answer in stored))
        prompt_tokens.append(sum(group.prompt_tokens for group in groups))
        logprobs += [answer.reference_logprobs for answer in stored]
    scored = ScoredBatch(prompt_tokens=prompt_tokens, refused={}, tokens=pa.array(logprobs, store.LOGPROBS))
    return WrittenBatch(answers=answers, scored=scored)


class _Scores:
    """All scores of a batch's answers, by model in the order in which they came."""

    def __init__(self, questions: Sequence[_Question]) -> None:
        self.questions = questions
        self._came: dict[Role, list[pa.Array]] = {}

    def at(self, role: Role, places: Sequence[int]) -> pa.Array:
        """Returns a model's scores at ``places`` (``_Question.scores``), an element for each answer."""
        return pa.concat_arrays(self._came[role]).take(pa.array(places, pa.int64()))

    def add_written(self, source: Source, written: WrittenBatch) -> None:
        """Gives the questions a model's answers, and adds their scores."""
        for one, answers in zip(self.questions, written.answers, strict=True):
            if answers:
                one.answers[source] = answers
        self.add(source, [[one.token_ids for one in own] for own in written.answers], written.scored)

    def add(self, role: Role, answers: Sequence[Sequence[TokenIds]], scored: ScoredBatch) -> None:
        """Adds a model's scores of ``answers``, and rejects the questions that it refused."""
        came = self._came.setdefault(role, [])
        place = sum(map(len, came))
        came.append(scored.tokens)
        for index, (one, own, count) in enumerate(zip(self.questions, answers, scored.prompt_tokens, strict=True)):
            if (refused := scored.refused.get(index)) is not None:
                by = "" if refused.kind == "picture" else f"the {role}'s engine refuses it: "
                one.reject(Refused(reason=by + refused.reason, kind=refused.kind))
                continue
            for ids in own:
                one.scores.setdefault((role, ids), place)
                place += 1
            if count:
                one.prompt_tokens[role] = count
