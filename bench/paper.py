"""What online iterations cost the paper (appendix F.2), and what they would cost this pipeline at the paper's rates:
``python -m bench.paper``.

The paper's figures are constants below, each with its place. ``Assumed`` holds everything that the paper does not say;
no number in it was measured. What ``table`` says is a calculation from published rates and not a measurement: it takes
for granted that online rollouts, a few hundred questions at a time, are made as fast for each GPU as
the paper's pre-generation of 1.5 million questions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

from masters_ray.config import Rollout
from masters_ray.method import schedule
from masters_ray.plan import columns
from masters_ray.plan.forecast import learning
from masters_ray.plan.rates import GroupMaking, Rates

HOURS = {0.0: 49.0, 0.05: 73.0, 0.1: 97.0, 0.15: 119.0, 0.2: 148.0}
"""Online share → hours of training, Qwen3-VL-32B to Qwen3-VL-8B (table of appendix F.2)."""
GPUS = 256
"""A100 80GB (appendix F.9)."""
SAMPLES = 1_500_000
"""Questions (appendix F.9)."""
PREGENERATED_ANSWERS = 8
"""To each question (appendix F.9)."""
TEACHER_HOURS = 24.0
"""Of pre-generation with a model of 32B or 38B on all GPUs: "about 1 day" (appendix F.9)."""
STUDENT_HOURS = 14.0
"""The same with one of 7B to 14B: the middle of "12–16 hours" (appendix F.9)."""
ONLINE_HOURS_PER_SAMPLE = 0.5 / 1000
"""Of training with eight online answers: "around 0.5 hours" for 1k samples on all GPUs (appendix F.9)."""
TEACHER_PARAMETERS, STUDENT_PARAMETERS = 32e9, 8e9
"""By the models' names."""
SHARES = (0.0, 0.05, 0.1, 0.15, 0.2, 0.5, 1.0)
"""Online shares of the table; those above 0.2 are not in the paper."""
SLOWER_AT_MOST = 1.1
"""Times the hours of 0 %: with so many dedicated replicas are sized to the learner."""


@dataclass(frozen=True, kw_only=True)
class Assumed:
    """What the paper leaves open, as we assume it.

    Judging and scoring are taken to be in F.9's hours and cost nothing more: F.9 speaks of generated responses and does
    not say whether a question's 8 verdicts and the teacher's scores are counted. The 49 hours of 0 % are taken to be
    the learner's alone, without pre-generation; the paper does not say so either.
    """

    groups_per_step: int = 256
    """Questions of an iteration, as in conf/machines/32x80gb.yaml."""
    teacher_answers: int = Rollout().teacher_answers
    """Of the teacher to each question of an online iteration; the paper's S#4 + T#4."""
    student_answers: int = Rollout().student_answers
    """The same of the student."""
    teacher_gpus: int = 2
    """GPUs of a teacher replica, as in conf/machines/32x80gb.yaml; the student's replicas have one each."""
    batch_rows: int = 2
    """Questions of a batch: few, so that an iteration's batches divide well among many replicas."""
    max_staleness: int = Rollout().max_staleness
    """Optimizer steps, with dedicated replicas; those that take turns with the learner are on-policy."""
    bytes_per_parameter: float = 2.0
    """bf16."""
    link_bytes_per_second: float = 25e9
    """Between GPUs: one link of 200 Gbit/s. The student's weights cross it once from the learner and once to each
    replica, all replicas at the same time."""
    host_bytes_per_second: float = 32e9
    """Between a GPU and the memory of its host: PCIe 4.0 with 16 lanes. A teacher that takes turns with the learner
    crosses it twice a turn."""

    @property
    def iterations(self) -> int:
        """Optimizer steps: every sample once."""
        return math.ceil(SAMPLES / self.groups_per_step)

    @property
    def learner_seconds(self) -> float:
        """Of an optimizer step: the hours of 0 %, evenly divided."""
        return HOURS[0.0] * 3600 / self.iterations

    @property
    def teacher_gpu_seconds(self) -> float:
        """For a question's answers of the teacher."""
        return TEACHER_HOURS * 3600 * GPUS / SAMPLES * self.teacher_answers / PREGENERATED_ANSWERS

    @property
    def student_gpu_seconds(self) -> float:
        """For a question's answers of the student."""
        return STUDENT_HOURS * 3600 * GPUS / SAMPLES * self.student_answers / PREGENERATED_ANSWERS

    @property
    def handover_seconds(self) -> float:
        """To publish the student's weights, and again to load them."""
        return STUDENT_PARAMETERS * self.bytes_per_parameter / self.link_bytes_per_second

    @property
    def wake_seconds(self) -> float:
        """To bring a teacher's weights to its GPUs for a turn and back to the host's memory."""
        return 2 * TEACHER_PARAMETERS * self.bytes_per_parameter / self.teacher_gpus / self.host_bytes_per_second


@dataclass(frozen=True, kw_only=True)
class Row:
    """One online share."""

    share: float
    paper_hours: float | None
    """Measured by the paper; None: not given."""
    literal_hours: float
    """By the paper's rate of online training: online samples × 0.5 h / 1,000 + 49 h × (1 − share)."""
    dedicated: tuple[int | None, float]
    """(GPUs for rollouts beside the learner's 256, hours), as ``dedicated``."""
    colocated_hours: float
    """Learner and replicas on the same 256 GPUs, taking turns."""


def table(assumed: Assumed | None = None) -> list[Row]:
    """The paper's hours for each online share, and this pipeline's at the paper's rates."""
    assumed = assumed or Assumed()
    return [
        Row(
            share=share,
            paper_hours=HOURS.get(share),
            literal_hours=share * SAMPLES * ONLINE_HOURS_PER_SAMPLE + HOURS[0.0] * (1 - share),
            dedicated=dedicated(assumed, share),
            colocated_hours=hours(assumed, share, GPUS, turns=True),
        )
        for share in SHARES
    ]


def dedicated(assumed: Assumed, share: float) -> tuple[int | None, float]:
    """(the fewest GPUs with which the run takes at most ``SLOWER_AT_MOST`` times the hours of 0 %, its hours); where no
    number is enough (None, the hours with a replica of each model for every batch)."""
    if not share:
        return 0, HOURS[0.0]
    batches = math.ceil(assumed.groups_per_step / assumed.batch_rows)
    gpus = assumed.teacher_gpus
    while True:
        gpus += 1
        found = hours(assumed, share, gpus)
        if found <= SLOWER_AT_MOST * HOURS[0.0]:
            return gpus, found
        if min(divided(assumed, gpus)) >= batches:
            return None, found


def divided(assumed: Assumed, gpus: int) -> tuple[int, int]:
    """(teacher's replicas, student's replicas) on so many GPUs: in proportion to what their answers cost.

    Example: of 90 GPUs the teacher has 28 replicas of 2, the student 34.
    """
    share = assumed.teacher_gpu_seconds / (assumed.teacher_gpu_seconds + assumed.student_gpu_seconds)
    teachers = max(1, min(round(gpus * share / assumed.teacher_gpus), (gpus - 1) // assumed.teacher_gpus))
    return teachers, gpus - teachers * assumed.teacher_gpus


def hours(assumed: Assumed, share: float, gpus: int, *, turns: bool = False) -> float:
    """Of the whole run with so many GPUs for rollouts: the learner's own, in turns, or others."""
    teachers, students = divided(assumed, gpus)
    answers = {
        "teacher": assumed.teacher_gpu_seconds / assumed.teacher_gpus,
        "student": assumed.student_gpu_seconds,
    }
    making = GroupMaking(
        rounds=[answers],
        replicas={"teacher": teachers, "student": students},
        batch_rows=assumed.batch_rows,
    )
    seconds = making.seconds(assumed.groups_per_step) + turns * assumed.wake_seconds
    rates = Rates(
        group_seconds=assumed.learner_seconds / assumed.groups_per_step,
        publish_seconds=assumed.handover_seconds,
        load_seconds=assumed.handover_seconds,
        start_seconds=None,
        calls={"answer": answers},
    )
    rollout = Rollout(
        max_staleness=0 if turns else assumed.max_staleness,
        max_wait_seconds=math.inf,
        placement="turns" if turns else "beside",
    )
    iterations = _iterations(assumed.groups_per_step, share)
    return learning(iterations, lambda questions: seconds, rates, rollout).seconds / 3600


@cache
def _iterations(groups_per_step: int, share: float) -> list[schedule.Iteration]:
    return schedule.iterations([(schedule.Stage(index=0, ratio=0.0), range(SAMPLES))], groups_per_step, share)


def lines(rows: Sequence[Row]) -> Iterator[str]:
    """A head, a line for each online share, and what the columns mean."""
    table = [
        {
            "online": f"{100 * row.share:.0f} %",
            "paper": "–" if row.paper_hours is None else f"{row.paper_hours:.0f} h",
            "paper's rate": f"{row.literal_hours:.0f} h",
            "GPUs beside": "not enough" if row.dedicated[0] is None else str(row.dedicated[0]),
            "hours": f"{row.dedicated[1]:.1f} h",
            f"same {GPUS} GPUs": f"{row.colocated_hours:.1f} h",
        }
        for row in rows
    ]
    yield columns([list(table[0]), *(list(row.values()) for row in table)])
    yield ""
    yield "paper: hours of training (appendix F.2)."
    yield "paper's rate: 0.5 h for every 1,000 online samples (appendix F.9), the others at 49 h for all."
    yield f"GPUs beside, hours: calculated; the fewest GPUs for rollouts, beside the learner's {GPUS}, with which the"
    yield f"run takes at most {SLOWER_AT_MOST:g} × the hours of 0 %."
    yield f"same {GPUS} GPUs: calculated; learner and rollouts take turns."
    yield "Both at the rates of the paper's pre-generation (F.9), nothing measured; what is assumed beside them stands"
    yield "in bench/paper.py (Assumed). Pre-generation for the offline share is in no column."


if __name__ == "__main__":
    for line in lines(table()):
        print(line)
