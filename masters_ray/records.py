"""Frozen records that rooms hand to each other; each stage returns a new type and never completes an old one.

Problem ─► Answer ─► JudgedAnswer ─► ScoredAnswer ─► RolloutGroup ─► store ─► learner ─► StepMetrics
"""

import hashlib
import json
import math
from dataclasses import dataclass, field, fields
from typing import Literal, get_args

import numpy as np

IMAGE = "<image {}>"  # stands in a question's texts where the picture of this number, from 1, is shown
Source = Literal["teacher", "student"]
Finish = Literal["stop", "length"]  # why generation ended: at an end-of-turn token; cut at the answer's token limit


@dataclass(frozen=True, kw_only=True)
class Picture:
    """An encoded picture (PNG, JPEG, …). Exactly one of ``path`` and ``data`` is set."""

    path: str | None = None
    data: bytes | None = None
    digest: str | None = None  # SHA-256 of the encoded bytes when the data was read, hexadecimal; None: not read yet


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One question about pictures, with its label."""

    id: str  # unique within a source, for example "test/17"
    question: str
    label: str
    pictures: tuple[Picture, ...]
    """In the order in which IMAGE stands for them in question and choices; without any IMAGE, before the question."""
    choices: tuple[str, ...] = ()  # shown to the model below the question
    kind: str = "all"  # category of the question; accuracy is reported per kind
    references: tuple[str, ...] = ()  # all answers that count as right, if several; ``label`` is the most frequent
    suffix: str = ""  # shown to the model, not to judges, below question and choices
    rule: str = ""  # marks the answers in place of a judge; "judge": a judge does; "": as the configuration says
    dataset: str = ""  # name of the data source

    @property
    def digest(self) -> str:
        """16 hexadecimal digits of a hash over all fields. A picture counts by its content; by its path if not read."""
        pictures = [
            one.digest or (hashlib.sha256(one.data).hexdigest() if one.data is not None else one.path)
            for one in self.pictures
        ]
        content = [self.id, self.question, self.label, pictures, list(self.choices), self.kind]
        content += [list(self.references), self.suffix, self.rule]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


RejectedBy = Literal["row", "text", "picture", "engine", "judge", "replica", "learner"]
"""Why a row was set aside. row: malformed; text: a text holds a special token; picture: cannot be opened; engine: it
refuses the prompt; judge: too few judged answers; replica: replicas die on it; learner: cannot read the stored row."""


@dataclass(frozen=True, kw_only=True)
class Rejected:
    row: str  # file and row number, or the question's id
    reason: str
    kind: RejectedBy = "row"


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A sampled answer to a problem; its text is without special tokens."""

    source: Source
    text: str
    token_ids: tuple[int, ...]  # at least one token; ends with the end-of-turn token unless the answer was cut
    finish: Finish


@dataclass(frozen=True, kw_only=True)
class Reply:
    """A model's greedy answer."""

    text: str
    finish: Finish
    tokens: int = 0


@dataclass(frozen=True, kw_only=True)
class JudgedAnswer:
    answer: Answer
    accuracy: int | None  # R_acc, 0 or 1; None: unjudged, as neither judge call was readable
    verdict: str  # the judge's reply to its first call
    reasoning: int | None = None  # R_rea, 0 or 1; None: the judge was not asked, or neither of its calls was readable


@dataclass(frozen=True, kw_only=True)
class JudgedText:
    """A stored answer as its judge saw it, with its question: without tokens and log-probs."""

    position: int
    id: str
    kind: str
    question: str
    label: str
    choices: tuple[str, ...]
    source: Source
    text: str
    accuracy: int
    verdict: str
    reasoning: int | None


@dataclass(frozen=True, kw_only=True)
class TokenScores:
    """A teacher's truncated next-token distributions at the tokens of one answer."""

    top_ids: np.ndarray  # int32 [tokens, k], most likely first
    top_logprobs: np.ndarray  # float32 [tokens, k], log-probs at temperature 1, normalised over the whole vocabulary
    left_out: np.ndarray  # float32 [tokens], tail mass: the probability of all tokens outside the top k


@dataclass(frozen=True, kw_only=True)
class Scored:
    prompt_tokens: int
    top: TokenScores
    own: np.ndarray  # float32 [tokens], log-probs of the answer's tokens at temperature 1


@dataclass(frozen=True, kw_only=True)
class Refused:
    """A question that a model was not asked: the engine refused its prompt, or a picture cannot be opened."""

    reason: str
    kind: RejectedBy = "engine"


@dataclass(frozen=True, kw_only=True)
class ScoredAnswer:
    judged: JudgedAnswer
    teacher: TokenScores
    reference_logprobs: np.ndarray  # float32 [tokens], under the reference policy: the student before training
    behaviour_logprobs: np.ndarray | None = None  # of the student that wrote the group; None: before training


@dataclass(frozen=True, kw_only=True)
class Row:
    """A question of the store without its answers."""

    position: int  # place of the question in the run's order
    stage: int
    mask_ratio: float
    problem: Problem
    prompt_tokens: int  # tokens of the question with its pictures, as the student's engine read it
    teacher_digest: str
    student_digest: str
    version: int | None = None  # optimizer steps of the student that wrote an online group; None: before training


@dataclass(frozen=True, kw_only=True)
class RolloutGroup(Row):
    """A question with its judged and scored answers: a row of the store."""

    answers: tuple[ScoredAnswer, ...]  # 2 or more, judged; unjudged ones are left out and counted in ``AnswerTally``


@dataclass(frozen=True, kw_only=True)
class StepMetrics:
    """Metrics of one optimizer step: means over its groups in its first update unless the field says otherwise."""

    step: int  # counts from 1
    stage: int
    mask_ratio: float
    loss: float
    policy_loss: float
    kl: float  # k3 estimate of the KL divergence to the reference policy, nats
    jsd: float  # Jensen-Shannon divergence between teacher and current student, nats
    accuracy_reward: float
    distillation_reward: float
    advantage_std: float  # population standard deviation of the advantages
    zero_std_groups: float  # fraction of groups whose answers all have the same reward
    clip_fraction: float  # fraction of tokens whose probability ratio was clipped in the step's last update
    grad_norm: float  # before clipping
    learning_rate: float
    groups: int
    answer_tokens: int
    tokens: int  # tokens of all packed sequences; each prompt counts once per group
    tokens_per_second: float  # ``tokens`` times learner.updates_per_step, over all workers
    padding_fraction: float  # share of the workers' capacity spent on padding or on waiting for a longer micro-batch
    seconds: float  # wall time of the step without ``rollout_wait_s``
    rollout_wait_s: float  # seconds that the learner waited for the step's online rollouts
    fresh: int  # groups from online rollouts; 0 in an offline iteration
    age: float  # mean of ``OnlineStep.ages``
    logprob_mismatch: float  # mean |learner's − writer's log-prob| on the fresh groups, nats per token
    mfu: float
    """Necessary operations (``learner.work``) per second and worker, as a fraction of the rate that the device reaches
    on one large matrix product."""
    memory_gib: float  # peak memory of any worker so far: PyTorch's on a GPU, the process's on a CPU
    jsd_error_bound: float = math.nan
    """Upper bound, nats, by which ``jsd`` of stored top-k scores can be below that of the whole vocabulary. NaN: not
    measured by an earlier version."""
    answer_length: float = math.nan  # tokens per answer. NaN, as the next: not measured by an earlier version.
    cut_share: float = math.nan  # fraction of the answers that were cut at their token limit


@dataclass(frozen=True, kw_only=True)
class OnlineStep:
    """One online iteration's rollouts: a line of online.jsonl."""

    step: int
    stage: int
    version: int  # student version asked for: its optimizer steps
    ages: list[int]  # staleness of each group made: optimizer steps by which its writer was behind the learner
    rejected: int
    seconds: float  # from the weights' arrival to the last group
    publish_seconds: float  # time that the learner spent on publishing the weights, before ``seconds`` starts
    load_seconds: float  # part of ``seconds`` until all student replicas held the weights
    calls: dict[str, dict[str, float]]
    """Pool and method ("teacher.answer") → sums over its calls: calls, questions, seconds, tokens (of what was written,
    of the answers scored, of the judge's replies; an earlier version did not note them)."""


@dataclass(frozen=True, kw_only=True)
class SkippedStep:
    """An optimizer step that was not taken: its loss or gradient was not finite, or it had no rows."""

    step: int
    stage: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """Stored rows that an optimizer step left out because the learner cannot read them."""

    step: int
    rows: list[Rejected]


@dataclass(frozen=True, kw_only=True)
class LogprobMismatch:
    """Difference between the learner's and the engine's log-probs of the untrained student, nats, over a stage."""

    stage: int
    rows: int
    row: str  # the row with the largest mean difference
    mean_gap: float  # mean absolute difference of ``row`` per answer token
    token_gap: float  # largest difference at any token of any row
    bound: float  # largest ``mean_gap`` of a row that counts as agreement
    apart: int  # rows above ``bound``; the learner does not train on them


EventKind = Literal["start", "code", "nodes", "warning", "checkpoint", "end"]
"""start, end: of a call of the command; code, nodes: what it runs, and where."""


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something that happened in a run: a line of events.jsonl."""

    time: str  # UTC, ISO 8601 with seconds
    kind: EventKind
    text: str
    step: int | None = None  # optimizer step, where it belongs to one


@dataclass(frozen=True, kw_only=True)
class AnswerTally:
    """Counts over the answers of a stage, or of a batch; ``+`` adds them up."""

    rows: int = 0
    answers: int = 0
    unjudged: int = 0
    empty: int = 0
    compared: int = 0  # answers with a verdict of a judge model and of the rule; the next three count among them
    judge_right: int = 0
    rule_right: int = 0
    judge_rule_agreements: int = 0
    student_compared: int = 0  # of ``compared``, those that the student wrote; also 0 in stores of an earlier version
    student_judge_right: int = 0  # among ``student_compared``, as the next two
    student_rule_right: int = 0
    student_judge_rule_agreements: int = 0
    defused_answers: int = 0  # answers with tags of the judge's prompts, which it is shown without their brackets
    defused_questions: int = 0  # questions whose text, label or choices hold tags of the judge's prompts
    teacher_written: int = 0
    teacher_cut: int = 0
    teacher_judged: int = 0
    teacher_right: int = 0
    student_written: int = 0
    student_cut: int = 0
    student_judged: int = 0
    student_right: int = 0
    reasoning_judged: int = 0
    reasoning_right: int = 0
    tokens: int = 0
    tail_mass_sum: float = 0.0  # sum over ``tokens`` of ``TokenScores.left_out``

    def __add__(self, other: "AnswerTally") -> "AnswerTally":
        names = [one.name for one in fields(AnswerTally)]
        return AnswerTally(**{name: getattr(self, name) + getattr(other, name) for name in names})

    def rates(self, part: Literal["right", "cut"], whole: Literal["judged", "written"]) -> dict[str, float]:
        """Returns the fraction of each source's ``whole`` answers that are ``part``; leaves out sources without any."""
        counts = {one: (getattr(self, f"{one}_{part}"), getattr(self, f"{one}_{whole}")) for one in get_args(Source)}
        return {source: found / of for source, (found, of) in counts.items() if of}

    @property
    def tail_mass(self) -> float:
        """Mean of ``TokenScores.left_out``; 0 without tokens."""
        return self.tail_mass_sum / self.tokens if self.tokens else 0.0


@dataclass(frozen=True, kw_only=True)
class StageOutcome(AnswerTally):
    """Outcome of making one stage's rollouts."""

    stage: int
    ratio: float  # mask ratio asked for
    sparsity: float  # mask ratio achieved
    masked: dict[str, int]  # masked matrices of the teacher: name with * in place of layer numbers → count
    unmasked: dict[str, int]  # the other matrices of the teacher, in the form of ``masked``
    teacher_digest: str
    seconds: float
    set_aside: dict[str, int]  # questions without a row: ``Rejected.kind`` → count
    calls: dict[str, dict[str, float]] = field(default_factory=dict)
    """As ``OnlineStep.calls``, of the process that finished the stage. Empty: not noted by an earlier version."""
    stored_bytes: int = 0  # size of the stage's store
