"""Every key of a configuration with its default, its unit, its bounds, and what a change of it leaves valid."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

from pydantic import Field

from masters_ray.config.fields import (
    MISSING,
    Checkpoint,
    ConfigSection,
    Directory,
    Int,
    KeyScope,
    MaskRatio,
    NonNegativeFloat,
    NonNegativeInt,
    Place,
    PositiveFloat,
    PositiveInt,
    Share,
    only,
)

Part = Literal["language", "vision", "projector", "embeddings", "lm_head"]
"""What a vision-language model is made of."""
KlEstimator = Literal["k1", "k2", "k3"]
Aggregation = Literal["answer", "token"]
JudgedBy = Literal["student", "teacher", "rule"]
Rule = Literal["exact", "relaxed", "choice", "vqa"]
CutAnswers = Literal["judge", "zero", "mask"]
Difficulty = Literal["rating", "likelihood"]
Transfer = Literal["object_store", "nccl"]
"""How the learner's weights reach the engines of online iterations."""


@dataclass
class Run(ConfigSection):
    """What the run is called and where it writes."""

    dir: Directory = MISSING
    """Directory of everything that the run writes; on a cluster a path that every node sees."""
    seed: NonNegativeInt = 0
    """Decides the order of the data and every sampled token."""


@dataclass
class Cluster(ConfigSection):
    local_cpus: Annotated[PositiveInt | None, KeyScope.RESUMABLE] = None
    """Logical CPUs of the Ray that ``run`` starts when RAY_ADDRESS is not set; default: what the machine has."""
    grows: Annotated[bool, KeyScope.RESUMABLE] = False
    """An autoscaler unknown to Ray adds nodes: wait for what today's do not hold. Ray's own needs no key."""


@dataclass
class DataSource(ConfigSection):
    """Rows with question, answer, image (a path relative to the file, bytes, or a list), maybe choices, id and kind."""

    format: Literal["jsonl", "parquet"] = "jsonl"
    path: Place | None = None
    """The file."""
    rows: PositiveInt | None = None
    """Take this many rows, kinds balanced, in the seeded order; default: all."""


@dataclass
class Data(ConfigSection):
    train: DataSource = field(default_factory=DataSource)
    held_out: DataSource = field(default_factory=DataSource)
    """What accuracy is measured on."""
    max_quarantined_share: Share = 0.01
    """Fraction of the rows asked for that may be set aside before the run stops."""
    order: Literal["seeded", "easy_to_hard"] = "seeded"
    """easy_to_hard: by how hard the unmasked first teacher finds a question (curriculum, appendix F.1)."""
    difficulty: Difficulty = "rating"
    """From 1 to 10. rating: the teacher is asked; likelihood: the tenth of its mean log-probability of the label."""
    max_unrated_share: Share = 0.25
    """Fraction of the questions that the teacher may fail to rate; they stand in the middle."""
    max_picture_pixels: Annotated[PositiveInt, Field(le=178_956_970)] = 50_000_000
    """Pixels of the largest picture that is decoded; a larger one is set aside. Pillow opens none above the bound."""


@dataclass
class Engine(ConfigSection):
    """A vLLM engine."""

    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    max_model_len: PositiveInt = 8192
    """Tokens of prompt and answer together."""
    max_num_seqs: Annotated[PositiveInt, KeyScope.RESUMABLE] = 256
    """Sequences decoded at the same time."""
    max_num_batched_tokens: Annotated[PositiveInt, KeyScope.RESUMABLE] = 8192
    """Tokens of one engine step."""
    gpu_memory_utilization: Annotated[PositiveFloat | None, KeyScope.RESUMABLE] = None
    """Fraction of a GPU's memory that the engine takes. Default: 0.9 of the part of the GPU that its replica reserves;
    where learner and rollouts take turns, 0.6 of a GPU for all engines on it: the learner's weights stay there."""
    kv_cache_memory_bytes: Annotated[PositiveInt | None, KeyScope.RESUMABLE] = None
    """Default: on a GPU what is left, on a CPU two sequences of max_model_len tokens and at least 64 MiB."""
    enforce_eager: Annotated[bool, KeyScope.RESUMABLE] = False
    """No CUDA graphs and no compilation: a faster start, slower tokens."""
    max_pictures: PositiveInt = 1
    """Pictures of one question."""


@dataclass
class MaskScope(ConfigSection):
    """Which weights are masked beside the linear layers of the language model (METHOD: the paper masks those)."""

    language: bool = True
    vision: bool = False
    projector: bool = False
    embeddings: bool = False
    lm_head: bool = False


@dataclass
class HostedModel(ConfigSection):
    """A model and the replicas that hold it while rollouts are made."""

    checkpoint: Checkpoint = MISSING
    replicas: Annotated[PositiveInt, KeyScope.RESUMABLE] = 1
    max_replicas: Annotated[PositiveInt | None, KeyScope.RESUMABLE] = None
    """Replicas up to this many are added while rollouts run, as a cluster finds room or grows; default: replicas."""
    cpus: Annotated[NonNegativeFloat, KeyScope.RESUMABLE] = 1.0
    """CPUs that Ray reserves for a replica."""
    gpus: Annotated[NonNegativeFloat, KeyScope.RESUMABLE] = 0.0
    """GPUs that Ray reserves for each tensor-parallel rank of a replica."""
    tensor_parallel: Annotated[PositiveInt, KeyScope.RESUMABLE] = 1
    engine: Engine = field(default_factory=Engine)


@dataclass
class Teacher(HostedModel):
    mask: MaskScope = field(default_factory=MaskScope)
    top_k: PositiveInt = 50
    """Log-probabilities kept per answer token; the mass of all other tokens is kept as one number."""


@dataclass
class Student(HostedModel):
    """The model that learns."""


@dataclass
class Judge(ConfigSection):
    """Who says which answers are right (appendix F.7). A judge's CPUs, GPUs and engine are those of its model."""

    of_teacher: JudgedBy = "student"
    """student: as it was at the start; teacher: without a mask, in processes of its own; rule: no model."""
    of_student: JudgedBy = "student"
    rule: Rule = "exact"
    """relaxed: numbers within 5 % (ChartQA); choice: its letter or text; vqa: VQA's. Judges are compared with it."""
    reasoning: bool = False
    """Ask as well whether an answer's reasoning supports it (reward.rho, appendix F.3)."""
    follows_student: Annotated[bool, KeyScope.LATER] = False
    """In online iterations the student judge has the weights of the student that writes, not those before training."""
    replicas: Annotated[PositiveInt, KeyScope.RESUMABLE] = 1
    share_process: Annotated[bool, KeyScope.RESUMABLE] = True
    """Judge in the processes that host the student replicas (same weights); further replicas get their own."""
    max_tokens: PositiveInt = 256
    """Longest text of a judge call."""


@dataclass
class Sampling(ConfigSection):
    """How rollouts are drawn (the paper's values)."""

    temperature: PositiveFloat = 1.0
    """Not 0: the answers of a group must differ."""
    top_p: Annotated[PositiveFloat, Field(le=1)] = 0.9
    top_k: Annotated[Int, only(lambda tokens: tokens == -1 or tokens >= 1, "at least 1, or -1 for all")] = 50
    repetition_penalty: PositiveFloat = 1.05
    max_tokens: PositiveInt = 1024


@dataclass
class Rollout(ConfigSection):
    teacher_answers: NonNegativeInt = 4
    student_answers: NonNegativeInt = 4
    student_refresh: Literal["run", "stage"] = "run"
    """run: the student before training writes; stage: the one at the start of each stage, which learns in between."""
    sampling: Sampling = field(default_factory=Sampling)
    batch_rows: Annotated[PositiveInt, KeyScope.RESUMABLE] = 64
    """Questions that go through the engines together and are stored as one shard; what is repeated after a kill."""
    store: Annotated[Place | None, KeyScope.RESUMABLE] = None
    """Where the stages' stores lie, a path or an address such as s3://bucket/folder; default: rollouts in run.dir."""
    reuse: Annotated[list[Place], KeyScope.RESUMABLE] = field(default_factory=list)
    """Directories of other runs' stores; their rows that were made by the same recipe are taken over."""
    online_fraction: Annotated[Share, KeyScope.LATER] = 0.0
    """Fraction of the iterations, evenly spread, with fresh answers (appendix F.2). 0: fully offline; 1: online RL."""
    max_staleness: Annotated[NonNegativeInt, KeyScope.LATER] = 8
    """Optimizer steps that a fresh answer's writer may be behind the learner, which works meanwhile; 0: on-policy."""
    max_wait_seconds: Annotated[PositiveFloat, KeyScope.RESUMABLE] = 1800.0
    """Seconds that the learner waits for an iteration's fresh answers before it goes on without."""
    weight_transfer: Annotated[Literal["auto", Transfer], KeyScope.RESUMABLE] = "auto"
    """auto: nccl, from GPU to GPU, where learner and student have GPUs of their own; otherwise Ray's object store."""
    spare_rows: Annotated[bool, KeyScope.LATER] = False
    """Make rows ahead for the questions of online iterations too: trained on when fresh ones do not come in time."""
    placement: Annotated[Literal["auto", "beside", "turns"], KeyScope.RESUMABLE] = "auto"
    """Online replicas run beside: on their own CPUs and GPUs; turns: on the learner's (one node); auto: what fits."""
    pictures: Annotated[Literal["embed", "reference"], KeyScope.RESUMABLE] = "embed"
    """embed: stores hold the pictures' bytes and can be moved; reference: their paths, which every node must see."""
    max_restarts: Annotated[Int, KeyScope.RESUMABLE] = 10
    """How often a replica whose process died is started again."""
    max_set_aside_share: Annotated[Share, KeyScope.RESUMABLE] = 0.05
    """Fraction of a stage's questions that may end without a row (bad picture, prompt or verdicts, dead replicas)
    before the stage stops; of held-out questions that may not be asked; of rows that the learner may not read (one
    always may)."""
    max_unjudged_share: Annotated[Share, KeyScope.RESUMABLE] = 0.25
    """Fraction of a stage's answers of which neither judge call may be readable."""
    max_empty_share: Annotated[Share, KeyScope.RESUMABLE] = 0.25
    """Fraction of a stage's answers that may be without a word."""
    max_cut_share: Annotated[Share, KeyScope.RESUMABLE] = 0.5
    """Fraction of a stage's answers, the teacher's or the student's, that may be cut at sampling.max_tokens."""


@dataclass
class ScheduledStage(ConfigSection):
    ratio: MaskRatio
    """Fraction of every masked matrix that is zero."""
    share: PositiveFloat | None = None
    """Fraction of the iterations; default: every stage the same."""


@dataclass
class Schedule(ConfigSection):
    """Mask ratio r falls from max_ratio by step to 0 in equal stages (METHOD 2)."""

    max_ratio: MaskRatio = 0.2
    step: PositiveFloat = 0.05
    stages: list[ScheduledStage] = field(default_factory=list)
    """Ratios and shares one by one, in place of max_ratio and step."""
    stage_data: Literal["share", "all"] = "share"
    """share: the stages split the data, one pass in all; all: each stage sees the whole set."""


@dataclass
class Growth(ConfigSection):
    """A further teacher, which goes on where the one before it ended (teacher growth)."""

    teacher: Teacher = field(default_factory=Teacher)
    schedule: Schedule = field(default_factory=Schedule)


@dataclass
class Reward(ConfigSection):
    alpha: NonNegativeFloat = 1.0
    """Weight of the distillation reward beside the accuracy reward."""
    rho: NonNegativeFloat = 0.0
    """Weight of the reasoning reward (appendix F.3); above 0 it needs judge.reasoning."""
    least_spread: NonNegativeFloat = 0.0
    """Nats. Answers' divergences that lie closer together give no distillation reward, which would be rounding."""
    cut_answers: CutAnswers = "judge"
    """At rollout.sampling.max_tokens. judge: judged as they stand; zero: R_acc = R_rea = 0; mask: advantage 0."""


@dataclass
class Lora(ConfigSection):
    """Low-rank adapters on the language model's linear layers, trained instead of all weights."""

    rank: NonNegativeInt = 0
    """0: no adapters, the weights themselves are trained."""
    alpha: PositiveInt = 32
    """An adapter's product is scaled by alpha / rank."""


@dataclass
class Learner(ConfigSection):
    workers: PositiveInt = 1
    cpus: Annotated[NonNegativeFloat, KeyScope.RESUMABLE] = 1.0
    """CPUs that Ray reserves for a worker."""
    gpus: Annotated[float, only(lambda gpus: gpus in (0, 1), "0 or 1"), KeyScope.RESUMABLE] = 0.0
    """GPUs of a worker; more workers take more GPUs."""
    zero_stage: Annotated[NonNegativeInt, Field(le=3)] = 2
    offload: Literal["nothing", "optimizer", "everything"] = "nothing"
    """What ZeRO keeps in the CPU's memory: the optimizer's state (stages 1 to 3), and the weights too (stage 3)."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Of weights and activations; with bfloat16 the optimizer keeps float32 master weights."""
    activation_checkpointing: Annotated[bool, KeyScope.RESUMABLE] = False
    """Compute each layer's activations again on the way back instead of keeping them."""
    frozen: list[Part] = field(default_factory=lambda: ["vision"])
    """Parts that are not trained. With adapters nothing else is trained, whatever stands here."""
    lora: Lora = field(default_factory=Lora)
    groups_per_step: PositiveInt = 64
    """Groups (questions) of one optimizer step, over all workers."""
    tokens_per_micro_batch: Annotated[PositiveInt, KeyScope.RESUMABLE] = 16384
    """Tokens of one pass of one worker; a larger group goes alone. Decides memory and speed, never the result."""
    logits_mib: Annotated[PositiveInt, KeyScope.RESUMABLE] = 64
    """Most MiB of float32 logits held at a time; the head works through larger ones tile by tile."""
    learning_rate: NonNegativeFloat = 1e-6
    """0 leaves the student as it is: a run that only tries everything out."""
    warmup_steps: NonNegativeInt = 0
    """Optimizer steps over which the learning rate rises linearly; constant afterwards."""
    weight_decay: NonNegativeFloat = 0.0
    gradient_clipping: PositiveFloat = 1.0
    policy_weight: NonNegativeFloat = 1.0
    """Weight of the GRPO loss; 0 leaves plain distillation by the divergence."""
    jsd_weight: NonNegativeFloat = 1.0
    """Weight of the divergence to the teacher."""
    kl_beta: NonNegativeFloat = 0.1
    """Weight of the KL estimate against the student before training, inside the GRPO loss."""
    kl_estimator: KlEstimator = "k3"
    clip_epsilon: Annotated[PositiveFloat, Field(lt=1)] = 0.2
    """How far a ratio of new to old probability counts; offline groups feel it when updates_per_step is above 1."""
    aggregation: Aggregation = "answer"
    """answer: every answer of a group weighs the same; token: every answer token of a step does."""
    teacher: Literal["stored", "live"] = "stored"
    """stored: by teacher.top_k likeliest tokens; live: every worker holds it, and compares whole distributions."""
    max_logprob_gap: Annotated[NonNegativeFloat | None, KeyScope.RESUMABLE] = None
    """Nats: how far learner and engine may be apart on the untrained student's answers to a question, mean over their
    tokens; default: 0.01 where both compute in float32, otherwise 0.1 (docs/LEARNER.md). Single rows above are left
    out, more than 1 % of those that are compared before the first step stop the run."""
    updates_per_step: PositiveInt = 1
    """Optimizer updates on the groups of one step; the later ones clip the ratio to the first."""
    checkpoint_every: Annotated[PositiveInt, KeyScope.RESUMABLE] = 50
    """Optimizer steps between checkpoints."""
    checkpoints_kept: Annotated[PositiveInt, KeyScope.RESUMABLE] = 2
    """The last ones."""
    max_failures: Annotated[NonNegativeInt, KeyScope.RESUMABLE] = 0
    """How often a lost worker group is restarted from the last checkpoint."""
    max_skipped_in_a_row: Annotated[NonNegativeInt, KeyScope.RESUMABLE] = 3
    """Steps whose loss or gradient is not finite are skipped; one more than this in a row stops the run."""


@dataclass
class Evaluation(ConfigSection):
    marked_by: Literal["judge", "rule"] = "judge"
    """judge: the student as it was at the start; rule: judge.rule, for short labels."""
    max_tokens: PositiveInt | None = None
    """Longest greedy answer; default: rollout.sampling.max_tokens, which leaves reasoning as much room."""
    examples: Annotated[NonNegativeInt, KeyScope.LATER] = 6
    """Questions shown in the report with their answers and rewards."""


@dataclass
class Config(ConfigSection):
    run: Run = field(default_factory=Run)
    cluster: Cluster = field(default_factory=Cluster)
    data: Data = field(default_factory=Data)
    teacher: Teacher = field(default_factory=Teacher)
    student: Student = field(default_factory=Student)
    judge: Judge = field(default_factory=Judge)
    rollout: Rollout = field(default_factory=Rollout)
    schedule: Schedule = field(default_factory=Schedule)
    growth: list[Growth] = field(default_factory=list)
    """Larger teachers of the same family, each with its own schedule; the student is carried on."""
    reward: Annotated[Reward, KeyScope.LEARNING] = field(default_factory=Reward)
    learner: Annotated[Learner, KeyScope.LEARNING] = field(default_factory=Learner)
    evaluation: Evaluation = field(default_factory=Evaluation)

    @property
    def schedules(self) -> list[Schedule]:
        """Of each teacher."""
        return [self.schedule, *(one.schedule for one in self.growth)]

    @property
    def models(self) -> dict[str, Teacher | Student]:
        """Key of the configuration → teacher or student: the teachers in their order, then the student."""
        further = {f"growth[{number}].teacher": one.teacher for number, one in enumerate(self.growth)}
        return {"teacher": self.teacher, **further, "student": self.student}

    def of_teacher(self, number: int) -> Config:
        """The same configuration with teacher ``number`` (from 0) as its only one."""
        if number == 0:
            return replace(self, growth=[])
        chosen = self.growth[number - 1]
        return replace(self, teacher=chosen.teacher, schedule=chosen.schedule, growth=[])

    @property
    def judges(self) -> set[JudgedBy]:
        """Who judges rollouts or, with the student, held-out answers."""
        marking: set[JudgedBy] = {"student"} if self.evaluation.marked_by == "judge" else set()
        return {self.judge.of_teacher, self.judge.of_student} | marking

    @property
    def evaluation_tokens(self) -> int:
        """Of the longest greedy answer."""
        longest = self.evaluation.max_tokens
        return self.rollout.sampling.max_tokens if longest is None else longest

    @property
    def group_size(self) -> int:
        """G: answers of one question."""
        return self.rollout.teacher_answers + self.rollout.student_answers
