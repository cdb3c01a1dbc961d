"""Recipes: what the rows of a run's stages depend on, so which rows a store accepts, and whether it has them all."""

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from masters_ray import store
from masters_ray.config import Config, Judge, Rollout
from masters_ray.errors import StoreError
from masters_ray.learner import checkpoints
from masters_ray.method.masks import MaskReport
from masters_ray.method.schedule import Stage
from masters_ray.models import weights
from masters_ray.pipeline.context import RunContext
from masters_ray.progress import warn
from masters_ray.records import Source
from masters_ray.weight_sync.broker import Order

OF_QUESTIONS = {"data", "questions"}  # which questions a store holds (``Questions.key``); no row depends on them


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a stage's rows depend on; a store accepts only rows of the same recipe."""

    stage: Stage
    rollout: Rollout
    judge: Judge
    seed: int
    student_digest: str  # digest of the student that writes
    settings: Mapping[str, Any]  # all that decides the rows, as plain values, but for the masked teacher's weights
    online: Order | None = None  # the order of an online iteration; None for answers that are written before training

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


def of_stage(run: RunContext, stage: Stage, online: Order | None = None) -> Recipe:
    """Returns the recipe of a stage, or of an online iteration in it."""
    checkpoint = writer(run, stage)
    student = weights.digest(checkpoint) if checkpoint is not None and checkpoint.exists() else run.reference
    if online is not None:
        student = online.weights.digest
    questions = run.questions.key(run.plan[stage.index][1])
    return recipe(run.config.of_teacher(stage.teacher), stage, student, run.reference, questions, online)


def writer(run: RunContext, stage: Stage) -> Path | None:
    """Returns the checkpoint of the student that writes in a stage; None: the student before training."""
    return run.directory.student_after(stage.index - 1) if run.refreshes and stage.index else None


def earlier(run: RunContext, stage: Stage) -> store.Lookup | None:
    """Returns the rows of the first stage with the same judge of student answers: a stage takes over their student
    answers and verdicts. None where stages share out the questions, or the student is refreshed."""
    if run.config.of_teacher(stage.teacher).schedule.stage_data == "share" or run.refreshes:
        return None
    by_teacher = run.config.judge.of_student == "teacher"
    first = next(one.index for one in run.stages if not by_teacher or one.teacher == stage.teacher)
    return store.Lookup([run.directory.stage(first)]) if first < stage.index else None


def recipe(
    config: Config,
    stage: Stage,
    student_digest: str,
    reference_digest: str,
    questions: Mapping[str, str],
    online: Order | None = None,
) -> Recipe:
    """config: with the stage's teacher. student_digest: of the writer. questions: as from ``Questions.key``."""
    checkpoints = [weights.locate(one.checkpoint) for one in (config.teacher, config.student)]
    teacher_prompts, student_prompts = map(weights.prompt_digest, checkpoints)
    judge = {name: getattr(config.judge, name) for name in ("of_teacher", "of_student", "reasoning", "max_tokens")}
    judge["rule"] = config.judge.rule if "rule" in judge.values() else None
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
        "judge": judge,
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
        judge=config.judge,
        seed=config.run.seed,
        student_digest=student_digest,
        settings=settings,
        online=online,
    )


def positions_before_training(run: RunContext, stage: Stage) -> list[int]:
    """Returns the positions of a stage whose rows are made before training: all but those that only online iterations
    answer."""
    online = {
        position
        for one in run.iterations
        if one.online and one.stage == stage.index and not run.config.rollout.spare_rows
        for position in one.positions
    }
    return [position for position in run.plan[stage.index][1] if position not in online]


def is_complete(run: RunContext, stage: Stage) -> bool:
    """Returns whether a stage's store is finished and undamaged; a writer mends a damaged one.

    Raises StoreError when a store has another recipe or too few questions, when a damaged store is another run's, and
    when the student has learned from rows that are damaged.
    """
    folder = run.directory.stage(stage.index)
    if not folder.has(store.MANIFEST):
        return False
    other = store.difference(folder, of_stage(run, stage).settings)
    told = f"{folder}: its rows were made by something else ({other})."
    if run.directory.student.exists():
        if other:
            warn(f"{told} The run is finished with the student that has learned from them")
        return True
    survey = store.survey(folder)
    if other and store.KEY not in survey.broken:
        raise StoreError(f"{told} {store.OTHER_RECIPE}")
    if survey.broken:
        _refuse_to_mend(run, stage, survey.broken)
        return False
    asked = {position for account in survey.accounts.values() for position in account.asked}
    if missing := set(positions_before_training(run, stage)) - asked:
        raise StoreError(
            f"{folder}: finished without {len(missing)} questions of its stage, by a larger rollout.online_fraction or "
            f"another learner.groups_per_step. {store.OTHER_RECIPE}"
        )
    return True


def _refuse_to_mend(run: RunContext, stage: Stage, broken: Mapping[str, str]) -> None:
    """Raises StoreError when a damaged store is another run's, or when the student has learned from its rows."""
    told, learned = next(iter(broken.values())), _learned_until(run, stage)
    if any(name.startswith(store.SHARD) and store.first_position(name) < learned for name in broken):
        raise StoreError(
            f"{told}. The student has learned from these rows already. Put back what was there, or choose another "
            "run.dir."
        )
    if (owner := run.directory.owner_of_rollouts) is not None:
        raise StoreError(f"{told}. It is the run's in {owner}: mend it there.")


def _learned_until(run: RunContext, stage: Stage) -> int:
    """Returns the stage's first position that the last checkpoint has not learned from; learning resumes there."""
    part = run.plan[stage.index][1]
    if run.directory.student_after(stage.index).exists():
        return part.stop
    found = checkpoints.find(run.directory.learner / "checkpoints")
    step = found[-1].step if found else 0
    seen = [one for one in run.iterations if one.stage == stage.index and one.number <= step]
    return max((one.positions.stop for one in seen), default=part.start)
