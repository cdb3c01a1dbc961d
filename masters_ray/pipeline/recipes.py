"""Recipes: what the rows of a run's stages depend on, and so which rows a store accepts."""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from masters_ray import store
from masters_ray.config import Config, JudgedBy, Rollout, Student, Teacher
from masters_ray.method.masks import MaskReport
from masters_ray.method.schedule import Stage
from masters_ray.models import special_tokens, weights
from masters_ray.pipeline.curriculum import Questions
from masters_ray.pipeline.judging import Judging
from masters_ray.pipeline.run_dir import RunDirectory
from masters_ray.records import Source

OF_QUESTIONS = {"data", "questions"}
"""Names of a key's values that tell which questions a store holds (``Questions.key``); no row depends on them."""


@dataclass(frozen=True, kw_only=True)
class OnlineWriter:
    """The student that writes the answers of an online iteration."""

    iteration: int
    version: int
    """The number of iterations that the student has learned from."""
    digest: str
    """Digest of the student's weights."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a stage's rows depend on; a store accepts only rows of the same recipe."""

    stage: Stage
    rollout: Rollout
    judging: Judging
    seed: int
    student_digest: str
    """Digest of the student that writes."""
    made_with: Mapping[str, Any]
    """Everything else in the data, the configuration and the checkpoints that decides the rows."""
    online: OnlineWriter | None = None
    """None for answers that are written before training."""

    def key(self, report: MaskReport) -> dict[str, Any]:
        """Returns the recipe as plain values, the key of a store. report: of the masked teacher."""
        return {"teacher_digest": report.digest, **self.settings}

    @property
    def settings(self) -> dict[str, Any]:
        """The part of ``key`` that is known before the teacher is masked."""
        judge = self.judging.settings
        return {
            "mask_ratio": self.stage.ratio,
            "student_digest": None if self.online else self.student_digest,
            "online": self.online is not None,
            "seed": self.seed,
            "teacher_answers": self.rollout.teacher_answers,
            "student_answers": self.rollout.student_answers,
            "sampling": dataclasses.asdict(self.rollout.sampling),
            "judge": {
                "of_teacher": judge.of_teacher,
                "of_student": judge.of_student,
                "rule": judge.rule if "rule" in (judge.of_teacher, judge.of_student) else None,
                "reasoning": judge.reasoning,
                "max_tokens": judge.max_tokens,
            },
            **self.made_with,
        }

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


class Recipes:
    """The recipes of a run's stages. Digests of the untrained student and of judging teachers are computed once."""

    def __init__(
        self, config: Config, directory: RunDirectory, plan: Sequence[tuple[Stage, range]], questions: Questions
    ) -> None:
        self._config, self._directory, self._plan, self._questions = config, directory, plan, questions
        self._judgings: dict[int, Judging] = {}

    @cached_property
    def reference(self) -> str:
        """Digest of the student before training."""
        return weights.digest(weights.locate(self._config.student.checkpoint))

    def writer(self, stage: Stage) -> Path | None:
        """Returns the checkpoint of the student that writes in a stage; None: the student before training."""
        refreshes = self._config.rollout.student_refresh == "stage"
        return self._directory.student_after(stage.index - 1) if refreshes and stage.index else None

    def of(self, stage: Stage, online: OnlineWriter | None = None) -> Recipe:
        """Returns the recipe of a stage, or of an online iteration in it."""
        config, judging = self._config.of_teacher(stage.teacher), self._judging(stage.teacher)
        questions = self._questions.key(self._plan[stage.index][1])
        if online is None:
            writer = self.writer(stage)
            student = self.reference if writer is None or not writer.exists() else weights.digest(writer)
        else:
            student = online.digest
            if config.judge.follows_student and "student" in judging.models:
                models = {**judging.models, "student": _identity(config.student, student)}
                judging = dataclasses.replace(judging, models=models)
        return recipe(config, stage, student, self.reference, judging, questions, online)

    def _judging(self, teacher: int) -> Judging:
        if teacher not in self._judgings:
            self._judgings[teacher] = judging(self._config.of_teacher(teacher), self.reference)
        return self._judgings[teacher]

    def earlier(self, stage: Stage) -> Earlier | None:
        """Returns the rows whose student answers a stage reuses, if each stage asks all questions of the same student:
        those of the first stage with the same judge of student answers, or else of the first stage. Otherwise None."""
        schedule = self._config.of_teacher(stage.teacher).schedule
        if stage.index == 0 or schedule.stage_data == "share" or self._config.rollout.student_refresh == "stage":
            return None

        judges = [self._judging(one.teacher).identity("student") for one, _ in self._plan[: stage.index + 1]]
        first = judges.index(judges[-1])
        same_judge = first < stage.index
        rows = store.Lookup([self._directory.stage(first if same_judge else 0)])
        return Earlier(rows=rows, same_judge=same_judge)


def judging(config: Config, reference_digest: str) -> Judging:
    """Returns who judges a teacher's rollouts. config: with this teacher only. reference_digest: of the student before
    training. Reads the teacher's weights if it judges."""
    judges = {config.judge.of_teacher, config.judge.of_student}
    models: dict[JudgedBy, str] = {}
    if "student" in judges:
        models["student"] = _identity(config.student, reference_digest)
    if "teacher" in judges:
        models["teacher"] = _identity(config.teacher, weights.digest(weights.locate(config.teacher.checkpoint)))
    return Judging(settings=config.judge, models=models)


def recipe(
    config: Config,
    stage: Stage,
    student_digest: str,
    reference_digest: str,
    judging: Judging,
    questions: Mapping[str, str],
    online: OnlineWriter | None = None,
) -> Recipe:
    """Returns a recipe. config: with its teacher only. student_digest: of the writer; reference_digest: untrained.
    questions: as from ``Questions.key``."""
    teacher, student = weights.locate(config.teacher.checkpoint), weights.locate(config.student.checkpoint)
    return Recipe(
        stage=stage,
        rollout=config.rollout,
        judging=judging,
        seed=config.run.seed,
        student_digest=student_digest,
        made_with={
            **questions,
            "reference_digest": reference_digest,
            "mask": dataclasses.asdict(config.teacher.mask),
            "top_k": config.teacher.top_k,
            "teacher_dtype": config.teacher.engine.dtype,
            "student_dtype": config.student.engine.dtype,
            "teacher_prompts": weights.prompt_digest(teacher),
            "student_prompts": weights.prompt_digest(student),
            "ends": [sorted(special_tokens.end_ids(one)) for one in (teacher, student)],
        },
        online=online,
    )


def _identity(model: Teacher | Student, digest: str) -> str:
    """Returns what decides a model's output: digests of its weights and of its prompt files, and its number format."""
    return f"{digest} {weights.prompt_digest(weights.locate(model.checkpoint))} {model.engine.dtype}"
