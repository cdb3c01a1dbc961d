"""The frozen rows that cross a boundary. A stage returns a new type; it never fills a blank in an old one.

Problem ─► Answer ─► JudgedAnswer ─► ScoredAnswer ─► RolloutGroup ─► store ─► learner ─► StepMetrics
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

import numpy as np

Source = Literal["teacher", "student"]
Finish = Literal["stop", "length"]
"""How an answer ended: by an end-of-turn token, or cut at its longest length."""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """An encoded picture (PNG, JPEG, …): by reference or in memory. Exactly one of the two is set."""

    path: str | None = None
    data: bytes | None = None
    digest: str | None = None
    """SHA-256 of the encoded bytes, hexadecimal, as they were when the data were read; None: they were not yet."""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One question about pictures, with its label.

    Example: ``Problem(id="test/17", question="what color is the shape?", label="red", kind="colour",
    pictures=(Picture(path="17.png"),))``
    """

    id: str
    """Unique within a source."""
    question: str
    label: str
    pictures: tuple[Picture, ...]
    choices: tuple[str, ...] = ()
    """Possible answers, if the question names them; shown to the model below the question."""
    kind: str = "all"
    """What accuracy is reported by."""

    @property
    def digest(self) -> str:
        """16 hexadecimal digits of everything above; pictures count by their content, wherever they lie. (One on disk
        that was not read yet counts by its path.)"""
        pictures = [
            one.digest or (hashlib.sha256(one.data).hexdigest() if one.data is not None else one.path)
            for one in self.pictures
        ]
        content = [self.id, self.question, self.label, pictures, list(self.choices), self.kind]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


RejectedBy = Literal["row", "text", "picture", "engine", "judge", "replica", "learner"]
"""What a row was set aside for: it is not one, a text of it holds a special token, a picture cannot be opened, an
engine does not take it, too few of its answers can be judged, replicas die on it, the learner cannot read it."""


@dataclass(frozen=True, kw_only=True)
class Rejected:
    """A row that was set aside."""

    row: str
    """Where it stands: file and row number, or the question's id."""
    reason: str
    kind: RejectedBy = "row"


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a model wrote to one problem."""

    source: Source
    text: str
    """Without special tokens."""
    token_ids: tuple[int, ...]
    """At least one; the end-of-turn token is the last unless the answer was cut."""
    finish: Finish


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What a model wrote in one greedy call."""

    text: str
    """Without special tokens."""
    finish: Finish


@dataclass(frozen=True, kw_only=True)
class JudgedAnswer:
    answer: Answer
    accuracy: int | None
    """R_acc, 0 or 1; None: neither judge call was readable (unjudged)."""
    verdict: str
    """What the judge wrote in its first call."""
    reasoning: int | None = None
    """R_rea, 0 or 1; None: nobody was asked, or the judge's call was not readable."""


@dataclass(frozen=True, kw_only=True)
class JudgedText:
    """A stored answer as its judge saw it, without tokens and scores."""

    position: int
    """Of its question."""
    kind: str
    question: str
    label: str
    choices: tuple[str, ...]
    source: Source
    text: str
    accuracy: int
    """R_acc, 0 or 1: answers that nobody could judge are not stored."""
    verdict: str
    reasoning: int | None
    """R_rea, 0 or 1; None: nobody was asked."""


@dataclass(frozen=True, kw_only=True)
class TokenScores:
    """A teacher's next-token distributions at the tokens of one answer. numpy arrays, so that they travel cheaply."""

    top_ids: np.ndarray
    """int32 [tokens, k], most likely first."""
    top_logprobs: np.ndarray
    """float32 [tokens, k], temperature 1, normalised over the whole vocabulary."""
    left_out: np.ndarray
    """float32 [tokens], probability mass outside the k."""


@dataclass(frozen=True, kw_only=True)
class Scored:
    """What an engine says of one answer."""

    prompt_tokens: int
    """Tokens of the question with its pictures."""
    top: TokenScores
    own: np.ndarray
    """float32 [tokens], log-probabilities of the answer's own tokens, temperature 1."""


@dataclass(frozen=True, kw_only=True)
class Refused:
    """A question that a model could not be asked: its engine would not take it, or a picture cannot be opened."""

    reason: str
    kind: RejectedBy = "engine"


@dataclass(frozen=True, kw_only=True)
class ScoredAnswer:
    judged: JudgedAnswer
    teacher: TokenScores
    reference_logprobs: np.ndarray
    """float32 [tokens], log-probability of each token under the student before training."""
    behaviour_logprobs: np.ndarray | None = None
    """The same under the student that wrote the group's answers while it learned; None: written before training."""


@dataclass(frozen=True, kw_only=True)
class RolloutGroup:
    """One question with its judged and scored answers: a row of the store."""

    position: int
    """Place in the seeded order of the run's data."""
    stage: int
    mask_ratio: float
    problem: Problem
    prompt_tokens: int
    """Tokens of the question with its pictures, as the student's engine read it."""
    answers: tuple[ScoredAnswer, ...]
    """At least 2; unjudged answers are left out and counted."""
    teacher_digest: str
    student_digest: str
    version: int | None = None
    """Optimizer steps that the student who wrote had seen, in an online iteration; None: written before training."""


@dataclass(frozen=True, kw_only=True)
class StepMetrics:
    """What one optimizer step reports; means over the step's groups unless said otherwise."""

    step: int
    """Counts from 1."""
    stage: int
    mask_ratio: float
    loss: float
    policy_loss: float
    kl: float
    """k3 to the reference policy, nats."""
    jsd: float
    """Teacher and current student, nats."""
    accuracy_reward: float
    distillation_reward: float
    advantage_std: float
    """Population standard deviation of the advantages."""
    zero_std_groups: float
    """Fraction of groups whose rewards do not differ."""
    clip_fraction: float
    """Fraction of tokens whose ratio of new to old probability was cut off in the step's last update; 0 with one update
    on groups without an age."""
    grad_norm: float
    """Before clipping, of the step's first update."""
    learning_rate: float
    groups: int
    answer_tokens: int
    tokens: int
    """Tokens of all sequences, prompts once."""
    tokens_per_second: float
    """The same per second of the step, over all workers."""
    padding_fraction: float
    """Fraction of what the workers could have computed that was padding, or waiting for a longer micro-batch."""
    seconds: float
    """Wall time of the step, without waiting for fresh answers."""
    rollout_wait_s: float
    """Seconds that the learner waited for the step's fresh answers."""
    fresh: int
    """Groups that were answered afresh, in an online iteration; 0 in an offline one."""
    age: float
    """Mean over those of the optimizer steps by which the student who wrote is behind; 0 without."""
    logprob_mismatch: float
    """Mean distance of the learner's log-probabilities to the writing student's, nats per token of those groups; 0
    without."""
    mfu: float
    """Necessary operations (``learner.work``) per second and worker, as a fraction of the device's rate at one large
    matrix product."""
    memory_gib: float
    """Most memory held so far on any worker: PyTorch's on a GPU, the process's on a CPU."""
    jsd_error_bound: float = math.nan
    """Most that ``jsd`` can be below the divergence over the whole vocabulary, because stored scores leave tokens out;
    nats. NaN: a step of a version that did not measure it."""


@dataclass(frozen=True, kw_only=True)
class OnlineStep:
    """What came of one online iteration's answers: a line of online.jsonl."""

    step: int
    stage: int
    version: int
    """Of the student that was to write: the optimizer steps it had seen."""
    ages: list[int]
    """Of each group that was made: optimizer steps by which its writer was behind the learner."""
    rejected: int
    """Questions without a group."""
    seconds: float
    """From when the weights were there to when the groups were."""
    publish_seconds: float
    """What the learner spent on handing out the weights, before."""
    load_seconds: float
    """Of ``seconds``, until all of the student's replicas held the weights."""
    calls: dict[str, dict[str, float]]
    """Pool and method ("teacher.answer") → calls, questions, seconds, summed over its calls."""


@dataclass(frozen=True, kw_only=True)
class SkippedStep:
    """An optimizer step that was not taken: its loss or its gradient was not finite, or it has no rows."""

    step: int
    stage: int
    reason: str
    saved: str
    """Directory with the step's rows (a parquet file like the store's) for inspection; "" without rows."""


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """Stored rows that an optimizer step went on without: the learner cannot read them."""

    step: int
    rows: list[Rejected]


@dataclass(frozen=True, kw_only=True)
class LogprobMismatch:
    """How far the learner's log-probabilities of the untrained student are from the engine's on rows of a stage."""

    stage: int
    rows: int
    """That were compared."""
    row: str
    """The one that is furthest apart."""
    mean_gap: float
    """Its mean distance, nats per answer token."""
    token_gap: float
    """The largest distance at one token of any row, nats."""
    bound: float
    """Largest mean distance of a row that counts as agreement."""
    apart: int
    """Rows above it, which are not learned from."""


@dataclass(frozen=True, kw_only=True)
class AnswerTally:
    """Counts over the answers of a stage; tallies of batches add up."""

    rows: int = 0
    """Groups stored."""
    answers: int = 0
    unjudged: int = 0
    """Answers left out because neither judge call was readable."""
    empty: int = 0
    """Answers without a word."""
    compared: int = 0
    """Answers that a model has judged readably, and the rule as well; of these the next three are."""
    judge_right: int = 0
    rule_right: int = 0
    judge_rule_agreements: int = 0
    """Both say the same."""
    defused_answers: int = 0
    """Answers that hold tags of a judge's prompts."""
    defused_questions: int = 0
    """Questions that do, or whose label or choices do."""
    teacher_written: int = 0
    teacher_cut: int = 0
    """Cut at their longest length."""
    teacher_judged: int = 0
    teacher_right: int = 0
    student_written: int = 0
    student_cut: int = 0
    student_judged: int = 0
    student_right: int = 0
    reasoning_judged: int = 0
    reasoning_right: int = 0
    tokens: int = 0
    """Scored tokens of stored answers."""
    tail_mass_sum: float = 0.0
    """Their teacher mass outside the stored top k."""

    def __add__(self, other: AnswerTally) -> AnswerTally:
        return AnswerTally(
            **{one.name: getattr(self, one.name) + getattr(other, one.name) for one in fields(AnswerTally)}
        )

    @classmethod
    def total(cls, parts: Iterable[Mapping[str, Any]]) -> AnswerTally:
        """The sum of tallies that were noted as plain values."""
        total = AnswerTally()
        for part in parts:
            total += AnswerTally(**part)
        return total

    @property
    def accuracy_by_source(self) -> dict[str, float]:
        """Mean R_acc of the teacher's and of the student's answers."""
        return self._rates("right", "judged")

    @property
    def cut_by_source(self) -> dict[str, float]:
        """Share of the teacher's and of the student's answers that were cut."""
        return self._rates("cut", "written")

    @property
    def reasoning(self) -> float | None:
        """Mean R_rea; None when nobody was asked."""
        return self.reasoning_right / self.reasoning_judged if self.reasoning_judged else None

    @property
    def tail_mass(self) -> float:
        """Mean teacher mass outside the stored top k, over tokens."""
        return self.tail_mass_sum / self.tokens if self.tokens else 0.0

    def _rates(self, part: str, whole: str) -> dict[str, float]:
        counts = {one: (getattr(self, f"{one}_{part}"), getattr(self, f"{one}_{whole}")) for one in get_args(Source)}
        return {source: found / of for source, (found, of) in counts.items() if of}


@dataclass(frozen=True, kw_only=True)
class StageOutcome(AnswerTally):
    """What making one stage's rollouts took and achieved."""

    stage: int
    ratio: float
    """Mask ratio asked for."""
    sparsity: float
    """Mask ratio achieved."""
    masked: dict[str, int]
    """Which matrices of the teacher: names with * in place of numbers → how many."""
    unmasked: dict[str, int]
    """The teacher's matrices that no mask touched, in the same way."""
    teacher_digest: str
    seconds: float
    set_aside: dict[str, int]
    """Questions without a row, by kind (Rejected)."""
