"""Recipes: what the rows of a run's stages depend on, and so which rows a store accepts."""

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from masters_ray import store
from masters_ray.config import Config, Judge, Rollout
from masters_ray.method.masks import MaskReport
from masters_ray.method.schedule import Stage
from masters_ray.models import weights
from masters_ray.pipeline.context import RunContext
from masters_ray.records import Source
from masters_ray.weight_sync.broker import Order

OF_QUESTIONS = {"data", "questions"}
"""Settings that tell which questions a store holds (``Questions.key``); no row depends on them."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a stage's rows depend on; a store accepts only rows of the same recipe."""

    stage: Stage
    rollout: Rollout
    judge: Judge
    seed: int
    student_digest: str
    """Digest of the student that writes."""
    settings: Mapping[str, Any]
    """All that decides the rows, as plain values, but for the masked teacher's weights."""
    online: Order | None = None
    """The order of an online iteration; None for answers that are written before training."""

    def key(self, report: MaskReport) -> dict[str, Any]:
        """Returns the key of a store of these rows. report: of the masked teacher."""
        return {"teacher_digest": report.digest, **self.settings}

    def seed_of(self, source: Source, problem_id: str) -> int:
        """Returns the sampling seed of a question's answers, independent of replica and batch. The teacher's depends on
        the mask ratio; the student's is the same in all stages; each online iteration has its own seeds."""
        name = f"{self.seed}/teacher/{self.stage.ratio:g}" if source == "teacher" else f"{self.seed}/student"
        if self.online:
            name += f"/iteration {self.online.iteration}"
        return int.from_bytes(hashlib.sha256(f"{name}/{problem_id}".encode()).digest()[:4], "big") >> 1


@dataclass(frozen=True, kw_only=True)
class Earlier:
    """Rows of an earlier stage with student answers that can be reused, because the same student wrote them."""

    rows: store.Lookup
    same_judge: bool
    """Whether both stages have the same judge of student answers."""


def of_stage(run: RunContext, stage: Stage, online: Order | None = None) -> Recipe:
    """Returns the recipe of a stage, or of an online iteration in it."""
    if online is not None:
        student = online.weights.digest
    else:
        checkpoint = writer(run, stage)
        student = run.reference if checkpoint is None or not checkpoint.exists() else weights.digest(checkpoint)
    questions = run.questions.key(run.plan[stage.index][1])
    return recipe(run.config.of_teacher(stage.teacher), stage, student, run.reference, questions, online)


def writer(run: RunContext, stage: Stage) -> Path | None:
    """Returns the checkpoint of the student that writes in a stage; None: the student before training."""
    return run.directory.student_after(stage.index - 1) if run.refreshes and stage.index else None


def earlier(run: RunContext, stage: Stage) -> Earlier | None:
    """Returns the rows whose student answers a stage reuses, if each stage asks all questions of the same student:
    those of the first stage with the same judge of student answers, or else of the first stage. Otherwise None."""
    if stage.index == 0 or run.config.of_teacher(stage.teacher).schedule.stage_data == "share" or run.refreshes:
        return None
    by_teacher = run.config.judge.of_student == "teacher"
    first = next(one.index for one in run.stages if not by_teacher or one.teacher == stage.teacher)
    same_judge = first < stage.index
    return Earlier(rows=store.Lookup([run.directory.stage(first if same_judge else 0)]), same_judge=same_judge)


def recipe(
    config: Config,
    stage: Stage,
    student_digest: str,
    reference_digest: str,
    questions: Mapping[str, str],
    online: Order | None = None,
) -> Recipe:
    """Returns a recipe. config: with its teacher only. student_digest: of the writer; reference_digest: untrained.
    questions: as from ``Questions.key``."""
    judge, checkpoints = config.judge, [weights.locate(one.checkpoint) for one in (config.teacher, config.student)]
    teacher_prompts, student_prompts = map(weights.prompt_digest, checkpoints)
    settings = {
        **questions,
        "mask_ratio": stage.ratio,
        "mask": dataclasses.asdict(config.teacher.mask),
        "student_digest": None if online else student_digest,
        "reference_digest": reference_digest,
        "online": online is not None,
        "seed": config.run.seed,
        "teacher_answers": config.rollout.teacher_answers,
        "student_answers": config.rollout.student_answers,
        "sampling": dataclasses.asdict(config.rollout.sampling),
        "judge": {
            "of_teacher": judge.of_teacher,
            "of_student": judge.of_student,
            "rule": judge.rule if "rule" in (judge.of_teacher, judge.of_student) else None,
            "reasoning": judge.reasoning,
            "max_tokens": judge.max_tokens,
        },
        "top_k": config.teacher.top_k,
        "teacher_dtype": config.teacher.engine.dtype,
        "student_dtype": config.student.engine.dtype,
        "teacher_prompts": teacher_prompts,
        "student_prompts": student_prompts,
        "ends": [sorted(weights.end_ids(folder)) for folder in checkpoints],
    }
    return Recipe(
        stage=stage,
        rollout=config.rollout,
        judge=judge,
        seed=config.run.seed,
        student_digest=student_digest,
        settings=settings,
        online=online,
    )
