"""Every key of a configuration with its default, unit, bounds, and when it may change in a run that has begun."""

from dataclasses import dataclass, field, replace
from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from masters_ray.config import fields
from masters_ray.config.data_schema import ONE_OR_MORE, Data, Rule
from masters_ray.config.fields import MISSING, Checkpoint, ConfigSection, Directory, KeyScope, Place, Share, only

Part = Literal["language", "vision", "projector", "embeddings", "lm_head"]
"""A part of a vision-language model."""
KlEstimator = Literal["k1", "k2", "k3"]
Aggregation = Literal["answer", "token"]
TrackerName = Literal["tensorboard", "wandb", "mlflow", "trackio"]
JudgedBy = Literal["student", "teacher", "rule"]
Transfer = Literal["object_store", "nccl"]
"""How the learner's weights reach the engines in online iterations."""
HardCheck = Literal["packing", "export", "agreement", "pictures", "remask"]
"""A check of the pair that is made before anything is spent: what it finds cannot be mended afterwards."""
MaskRatio = Annotated[float, Field(ge=0, lt=1)]
_WRITERS: tuple[Literal["teacher", "student"], ...] = ("teacher", "student")


@dataclass
class Run(ConfigSection):
    dir: Directory = MISSING
    """Directory of all that the run writes; on a cluster a path that every node sees."""
    seed: NonNegativeInt = 0
    """Seed of the order of the data and of sampling."""
    project: Annotated[str, KeyScope.RESUMABLE] = "masters_ray"
    """Name under which trackers group runs; a run is called after its directory there, such as runs-demo."""
    skip_checks: Annotated[list[HardCheck], KeyScope.RESUMABLE] = field(default_factory=list)
    """Checks of the pair (docs/FAMILIES.md) that a run does not make before its rollouts; --skip NAME adds one."""
    stop_after: Annotated[fields.Duration | None, KeyScope.RESUMABLE] = None
    """Time from the command's start, such as 11h30m, after which it saves its work and ends with exit code 75."""


@dataclass
class Cluster(ConfigSection):
    local_cpus: Annotated[PositiveInt | None, KeyScope.RESUMABLE] = None
    """Logical CPUs of the Ray that ``run`` starts when RAY_ADDRESS is not set; default: all of the machine."""
    gpu: Annotated[
        Literal["a100-80gb", "h100-80gb", "h200", "l40s", "rtx4090", "a10g", "l4"] | None, KeyScope.RESUMABLE
    ] = None
    """Card of the nodes: the plan calculates with its memory and speed where no run has been measured."""
    price: Annotated[NonNegativeFloat | None, KeyScope.RESUMABLE] = None
    """Price of an hour of one GPU, or of one CPU where no GPU is used, in any currency: for the plan."""
    grows: Annotated[bool, KeyScope.RESUMABLE] = False
    """Wait for more nodes instead of refusing the run; for autoscalers unknown to Ray (Ray's own is detected)."""


@dataclass
class Engine(ConfigSection):
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    max_model_len: PositiveInt = 8192
    """Most tokens of prompt and answer together."""
    max_num_seqs: Annotated[PositiveInt, KeyScope.RESUMABLE] = 256
    """Most sequences decoded at the same time."""
    max_num_batched_tokens: Annotated[PositiveInt, KeyScope.RESUMABLE] = 8192
    """Most tokens of one engine step."""
    gpu_memory_utilization: Annotated[PositiveFloat | None, KeyScope.RESUMABLE] = None
    """Fraction of a GPU's memory that the engine takes. Default: 0.9 of the fraction of the GPU that its replica
    reserves; in turns with the learner, whose weights stay on the GPU, all engines on a GPU share 0.6 of it."""
    kv_cache_memory_bytes: Annotated[PositiveInt | None, KeyScope.RESUMABLE] = None
    """Default: on a GPU what is left; on a CPU 1 GiB."""
    enforce_eager: Annotated[bool, KeyScope.RESUMABLE] = False
    """Run without CUDA graphs and compilation: the engine starts faster and generates more slowly."""
    max_pictures: PositiveInt = 1
    """Most pictures of one question."""


@dataclass
class Models(ConfigSection):
    """What holds for teachers and student."""

    unknown_family: Literal["refuse", "rows"] = "refuse"
    """A model_type that docs/FAMILIES.md does not list. rows: the learner computes each answer after a prompt of its
    own, which is right for every model and slower; masks find the parts by usual names."""


@dataclass
class MaskScope(ConfigSection):
    """Parts of the teacher whose matrices are masked (METHOD: the paper masks the language model's linear layers)."""

    language: bool = True
    vision: bool = False
    projector: bool = False
    embeddings: bool = False
    lm_head: bool = False


@dataclass
class HostedModel(ConfigSection):
    """A model, and the replicas that hold it while rollouts are made."""

    checkpoint: Checkpoint = MISSING
    replicas: Annotated[PositiveInt, KeyScope.RESUMABLE] = 1
    cpus: Annotated[NonNegativeFloat, KeyScope.RESUMABLE] = 1.0
    """CPUs that Ray reserves for each replica."""
    gpus: Annotated[NonNegativeFloat, KeyScope.RESUMABLE] = 0.0
    """GPUs that Ray reserves for each tensor-parallel rank of a replica."""
    tensor_parallel: Annotated[PositiveInt, KeyScope.RESUMABLE] = 1
    engine: Engine = field(default_factory=Engine)


@dataclass
class Teacher(HostedModel):
    mask: MaskScope = field(default_factory=MaskScope)
    top_k: PositiveInt = 50
    """Teacher log-probs stored per answer token; the tail mass of all other tokens is stored as one number."""


@dataclass
class Judge(ConfigSection):
    """Judges of the answers' correctness (appendix F.7). A judge has the cpus, gpus and engine of its model."""

    of_teacher: JudgedBy = "student"
    """Judge of the teacher's answers. student: before training; teacher: unmasked, in its own processes; rule: none."""
    of_student: JudgedBy = "student"
    """Judge of the student's answers, with the same choices."""
    rule: Rule = "exact"
    """relaxed: numbers within 5 % (ChartQA); choice: letter or text; vqa: VQA's; anls: more than half of the characters
    right (documents). Judges are compared with the rule. A source's rule takes its place."""
    reasoning: bool = False
    """Also judge whether an answer's reasoning supports it (R_rea; reward.rho, appendix F.3)."""
    follows_student: Annotated[bool, KeyScope.LATER] = False
    """In online iterations, judge with the weights of the student that writes instead of those before training."""
    replicas: Annotated[PositiveInt, KeyScope.RESUMABLE] = 1
    share_process: Annotated[bool, KeyScope.RESUMABLE] = True
    """Judge in the student replicas' processes (same weights); judges beyond their number get their own processes."""
    max_tokens: PositiveInt = 256
    """Most tokens of a judge's reply."""

    def of(self, source: Literal["teacher", "student"], rule: str | None = None) -> JudgedBy:
        """Returns who judges answers of ``source``. rule: of the question's own data source."""
        if rule not in (None, "", "judge"):
            return "rule"
        return self.of_teacher if source == "teacher" else self.of_student


@dataclass
class Sampling(ConfigSection):
    """Sampling of rollouts; defaults are the paper's."""

    temperature: PositiveFloat = 1.0
    """Above 0, since the answers of a group must differ."""
    top_p: Annotated[PositiveFloat, Field(le=1)] = 0.9
    top_k: Annotated[int, only(lambda tokens: tokens == -1 or tokens >= 1, "at least 1, or -1 for all")] = 50
    repetition_penalty: PositiveFloat = 1.05
    max_tokens: PositiveInt = 1024


@dataclass
class Rollout(ConfigSection):
    teacher_answers: NonNegativeInt = 4
    student_answers: NonNegativeInt = 4
    student_refresh: Literal["run", "stage"] = "run"
    """Which student writes offline answers. run: the one before training; stage: the one at the start of each stage."""
    sampling: Sampling = field(default_factory=Sampling)
    batch_rows: Annotated[PositiveInt, KeyScope.RESUMABLE] = 64
    """Questions of one batch, stored as one shard; a kill repeats the unfinished batches."""
    store: Annotated[Place | None, KeyScope.RESUMABLE] = None
    """Directory of the stages' stores: path or address such as s3://bucket/folder; default: rollouts in run.dir."""
    reuse: Annotated[list[Place], KeyScope.RESUMABLE] = field(default_factory=list)
    """Directories of other runs' stores; rows made by the same recipe are copied instead of made again."""
    online_fraction: Annotated[Share, KeyScope.LATER] = 0.0
    """Fraction of the iterations, evenly spread, with online rollouts (appendix F.2). 0: offline; 1: online RL."""
    max_staleness: Annotated[NonNegativeInt, KeyScope.LATER] = 8
    """Optimizer steps by which the writer of online rollouts may be behind the learner; 0: on-policy."""
    max_wait_seconds: Annotated[PositiveFloat, KeyScope.RESUMABLE] = 1800.0
    """Seconds that the learner waits for an iteration's online rollouts before it goes on without."""
    weight_transfer: Annotated[Literal["auto", Transfer], KeyScope.RESUMABLE] = "auto"
    """auto: nccl (GPU to GPU) where learner and student have GPUs of their own, otherwise Ray's object store."""
    spare_rows: Annotated[bool, KeyScope.LATER] = False
    """Make offline rows for online iterations too; the learner trains on them when online rollouts come too late."""
    placement: Annotated[Literal["auto", "beside", "turns"], KeyScope.RESUMABLE] = "auto"
    """Online replicas' devices. beside: their own; turns: the learner's (one node); auto: beside if that fits."""
    pictures: Annotated[Literal["embed", "reference"], KeyScope.RESUMABLE] = "embed"
    """embed: stores hold the pictures' bytes and can be moved; reference: paths that every node must see."""
    max_restarts: Annotated[int, KeyScope.RESUMABLE] = 10
    """Most restarts of a replica whose process died."""
    max_set_aside_share: Annotated[Share, KeyScope.RESUMABLE] = 0.05
    """Limit on the fraction of a stage's questions without a row (bad picture, prompt or verdicts, dead replicas), of
    held-out questions that a model cannot be asked, and of rows that the learner cannot read (a single one is always
    allowed). Above it the run stops."""
    max_unjudged_share: Annotated[Share, KeyScope.RESUMABLE] = 0.25
    """Fraction of a stage's answers that may be unjudged (neither judge call readable)."""
    max_empty_share: Annotated[Share, KeyScope.RESUMABLE] = 0.25
    """Fraction of a stage's answers that may have no text."""
    max_cut_share: Annotated[Share, KeyScope.RESUMABLE] = 0.5
    """Fraction of a stage's answers, per source, that may be cut at sampling.max_tokens."""


@dataclass
class ScheduledStage(ConfigSection):
    ratio: MaskRatio
    """Fraction of the entries of every masked matrix that is zeroed."""
    share: PositiveFloat | None = None
    """Fraction of the iterations; default: equal stages."""


@dataclass
class Schedule(ConfigSection):
    """Mask ratio r falls from max_ratio by step to 0 in equal stages (METHOD 2)."""

    max_ratio: MaskRatio = 0.2
    step: PositiveFloat = 0.05
    stages: list[ScheduledStage] = field(default_factory=list)
    """Explicit stages in place of max_ratio and step."""
    stage_data: Literal["share", "all"] = "share"
    """share: the stages split the data, which is passed once; all: each stage passes all of the data."""


@dataclass
class Growth(ConfigSection):
    """A further teacher, which continues from the student of the teacher before (teacher growth)."""

    teacher: Teacher = field(default_factory=Teacher)
    schedule: Schedule = field(default_factory=Schedule)


@dataclass
class Reward(ConfigSection):
    alpha: NonNegativeFloat = 1.0
    """Weight of the distillation reward; the accuracy reward has weight 1."""
    rho: NonNegativeFloat = 0.0
    """Weight of the reasoning reward (appendix F.3); above 0 it requires judge.reasoning."""
    least_spread: NonNegativeFloat = 0.0
    """Nats. A group whose divergences differ by no more gets no distillation reward, which would be rounding noise."""
    cut_answers: Literal["judge", "zero", "mask"] = "judge"
    """Answers cut at rollout.sampling.max_tokens. judge: as usual; zero: R_acc = R_rea = 0; mask: advantage 0."""


@dataclass
class Lora(ConfigSection):
    """Low-rank adapters on the language model's linear layers, trained in place of the weights."""

    rank: NonNegativeInt = 0
    """0: no adapters; the weights are trained."""
    alpha: PositiveInt = 32
    """Scales an adapter's product by alpha / rank."""


@dataclass
class Learner(ConfigSection):
    workers: PositiveInt = 1
    cpus: Annotated[NonNegativeFloat, KeyScope.RESUMABLE] = 1.0
    """CPUs that Ray reserves for each worker."""
    gpus: Annotated[float, only(lambda gpus: gpus in (0, 1), "0 or 1"), KeyScope.RESUMABLE] = 0.0
    """GPUs of each worker; raise ``workers`` to use more."""
    zero_stage: Annotated[NonNegativeInt, Field(le=3)] = 2
    offload: Literal["nothing", "optimizer", "everything"] = "nothing"
    """What ZeRO keeps in CPU memory. optimizer: its state (zero_stage 1 to 3); everything: weights too (stage 3)."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Type of weights and activations; with bfloat16 the optimizer keeps float32 master weights."""
    activation_checkpointing: Annotated[bool, KeyScope.RESUMABLE] = False
    """Recompute each layer's activations in the backward pass instead of keeping them."""
    frozen: list[Part] = field(default_factory=lambda: ["vision"])
    """Parts that are not trained. With lora.rank above 0 only the adapters are trained, whatever is listed here."""
    lora: Lora = field(default_factory=Lora)
    groups_per_step: PositiveInt = 64
    """Groups (questions) per optimizer step, over all workers."""
    tokens_per_micro_batch: Annotated[PositiveInt, KeyScope.RESUMABLE] = 16384
    """Most tokens of a worker's micro-batch; a larger group is one alone. Affects memory and speed, not the result."""
    logits_mib: Annotated[PositiveInt, KeyScope.RESUMABLE] = 64
    """Most MiB of float32 logits held at a time; the head computes larger ones tile by tile."""
    learning_rate: NonNegativeFloat = 1e-6
    """0 leaves the student unchanged, for a trial of the whole run."""
    warmup_steps: NonNegativeInt = 0
    """Optimizer steps over which the learning rate rises linearly; it is constant afterwards."""
    weight_decay: NonNegativeFloat = 0.0
    gradient_clipping: PositiveFloat = 1.0
    policy_weight: NonNegativeFloat = 1.0
    """Weight of the GRPO loss; 0 leaves plain distillation."""
    jsd_weight: NonNegativeFloat = 1.0
    """Weight of the Jensen-Shannon divergence to the teacher."""
    kl_beta: NonNegativeFloat = 0.1
    """Weight, inside the GRPO loss, of the KL estimate to the reference policy (the student before training)."""
    kl_estimator: KlEstimator = "k3"
    clip_epsilon: Annotated[PositiveFloat, Field(lt=1)] = 0.2
    """Clips probability ratios to 1 ± this; has no effect on offline groups unless updates_per_step is above 1."""
    aggregation: Aggregation = "answer"
    """Mean of the loss. answer: all answers of a group weigh the same; token: all answer tokens of a step do."""
    teacher: Literal["stored", "live"] = "stored"
    """stored: compare with the stored top-k log-probs; live: each worker holds the teacher, compares whole rows."""
    max_logprob_gap: Annotated[NonNegativeFloat | None, KeyScope.RESUMABLE] = None
    """Nats: largest mean difference per token between the learner's and the engine's log-probs of the untrained
    student on a row; default: 0.01 if both compute in float32, otherwise 0.1 (docs/LEARNER.md). Rows above it are left
    out; more than 1 % of those compared before the first step stop the run."""
    updates_per_step: PositiveInt = 1
    """Optimizer updates on the groups of one step; the later ones clip the ratio to the policy before the first."""
    checkpoint_every: Annotated[PositiveInt, KeyScope.RESUMABLE] = 50
    """Optimizer steps between checkpoints."""
    checkpoints_kept: Annotated[PositiveInt, KeyScope.RESUMABLE] = 2
    keep: Literal["last", "best"] = "last"
    """Whose step's student is the result. best: the highest held-out accuracy that evaluation.every measured."""
    max_failures: Annotated[NonNegativeInt, KeyScope.RESUMABLE] = 0
    """Most restarts of a lost worker group from the last checkpoint."""
    max_skipped_in_a_row: Annotated[NonNegativeInt, KeyScope.RESUMABLE] = 3
    """Steps in a row that may be skipped for a loss or gradient that is not finite; one more stops the run."""


@dataclass
class Evaluation(ConfigSection):
    marked_by: Literal["judge", "rule"] = "judge"
    """Who marks held-out answers. judge: the student before training; rule: judge.rule, for short labels."""
    max_tokens: PositiveInt | None = None
    """Most tokens of a greedy held-out answer; default: rollout.sampling.max_tokens."""
    every: Annotated[fields.Every | None, KeyScope.RESUMABLE] = None
    """Measure the student after each so many optimizer steps, or after each stage; null: after the last alone."""
    questions: Annotated[PositiveInt | None, KeyScope.LATER] = None
    """Held-out questions that ``every`` asks: the same each time, kinds in turn; null: all."""
    examples: Annotated[NonNegativeInt, KeyScope.LATER] = 6
    """Number of questions that the report shows with their answers and rewards."""


@dataclass
class Config(ConfigSection):
    run: Run = field(default_factory=Run)
    cluster: Cluster = field(default_factory=Cluster)
    data: Data = field(default_factory=Data)
    model: Models = field(default_factory=Models)
    teacher: Teacher = field(default_factory=Teacher)
    student: HostedModel = field(default_factory=HostedModel)
    judge: Judge = field(default_factory=Judge)
    rollout: Rollout = field(default_factory=Rollout)
    schedule: Schedule = field(default_factory=Schedule)
    growth: list[Growth] = field(default_factory=list)
    """Larger teachers of the same family, used one after the other, each with its schedule; the student continues."""
    reward: Annotated[Reward, KeyScope.LEARNING] = field(default_factory=Reward)
    learner: Annotated[Learner, KeyScope.LEARNING] = field(default_factory=Learner)
    evaluation: Evaluation = field(default_factory=Evaluation)
    tracker: Annotated[list[TrackerName], ONE_OR_MORE, KeyScope.RESUMABLE] = field(
        default_factory=lambda: ["tensorboard"]
    )
    """Experiment trackers that get curves, samples and pages (docs/TRACKERS.md): one, a list, or [] for none."""

    @property
    def schedules(self) -> list[Schedule]:
        """The schedule of each teacher, in their order."""
        return [self.schedule, *(one.schedule for one in self.growth)]

    @property
    def models(self) -> dict[str, HostedModel]:
        """Key ("teacher", "growth[0].teacher", …, "student") → model: the teachers in their order, then the student."""
        further = {f"growth[{number}].teacher": one.teacher for number, one in enumerate(self.growth)}
        return {"teacher": self.teacher, **further, "student": self.student}

    def of_teacher(self, number: int) -> Self:
        """Returns the configuration with teacher ``number`` (from 0) as its only teacher."""
        chosen: Config | Growth = self if number == 0 else self.growth[number - 1]
        return replace(self, teacher=chosen.teacher, schedule=chosen.schedule, growth=[])

    @property
    def judges(self) -> set[JudgedBy]:
        """All judges of rollouts, and the student if it marks held-out answers."""
        judging = {self.judge.of(source, one.rule) for one in self.data.train for source in _WRITERS}
        marking: set[JudgedBy] = {"student"} if self.marks_by_judge else set()
        return judging | marking

    @property
    def marks_by_judge(self) -> bool:
        """Whether the student marks answers to some held-out questions."""
        marks = [one.rule or self.evaluation.marked_by for one in self.data.held_out]
        return "judge" in marks

    @property
    def evaluation_tokens(self) -> int:
        return self.evaluation.max_tokens or self.rollout.sampling.max_tokens

    @property
    def group_size(self) -> int:
        """G: answers per question."""
        return self.rollout.teacher_answers + self.rollout.student_answers
