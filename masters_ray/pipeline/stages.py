"""What a run's parts are made from its configuration: recipes and judges, accuracies."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from masters_ray import remarks, weights
from masters_ray.actors.deployments import absolute
from masters_ray.actors.judge import Verdict
from masters_ray.actors.pool import Pool
from masters_ray.config import Config, JudgedBy, Rule, Student, Teacher
from masters_ray.engines import reserved
from masters_ray.engines.vllm_engine import Mask
from masters_ray.evaluate import Marked, accuracy, cut_share, mark
from masters_ray.learner.job import LiveSource
from masters_ray.marking import RULES
from masters_ray.pipeline.groups import Recipe
from masters_ray.pipeline.threads import batches, threads
from masters_ray.pipeline.verdicts import Judging
from masters_ray.progress import say, track
from masters_ray.records import Problem, Refused, Reply
from masters_ray.schedule import Stage

_EVALUATED_AT_A_TIME = 128
"""Held-out questions that a replica is handed at a time."""


def live_sources(config: Config) -> tuple[LiveSource, ...]:
    """The run's teachers as the learner loads them."""
    teachers = [config.of_teacher(number).teacher for number in range(len(config.schedules))]
    return tuple(
        LiveSource(checkpoint=absolute(teacher.checkpoint), parts=tuple(Mask(scope=teacher.mask, ratio=0.0).parts))
        for teacher in teachers
    )


def judging(config: Config, reference_digest: str) -> Judging:
    """Who judges a teacher's rollouts. config: with this teacher only; reference: the student before training. Reads
    the teacher's weights if it judges."""
    judges = {config.judge.of_teacher, config.judge.of_student}
    models: dict[JudgedBy, str] = {}
    if "student" in judges:
        models["student"] = _identity(config.student, reference_digest)
    if "teacher" in judges:
        models["teacher"] = _identity(config.teacher, weights.digest(weights.locate(config.teacher.checkpoint)))
    return Judging(settings=config.judge, models=models)


def followed(judging: Judging, config: Config, student_digest: str) -> Judging:
    """The same judges with the student that writes in place of the one before training."""
    if "student" not in judging.models:
        return judging
    models = {**judging.models, "student": _identity(config.student, student_digest)}
    return dataclasses.replace(judging, models=models)


def _identity(model: Teacher | Student, digest: str) -> str:
    """What decides what a model says: its weights, the files that make its prompts, its number format."""
    return f"{digest} {weights.prompt_digest(weights.locate(model.checkpoint))} {model.engine.dtype}"


def recipe(config: Config, stage: Stage, student_digest: str, reference_digest: str, judging: Judging) -> Recipe:
    """What a stage's rows depend on. student: who writes; reference: the student before training."""
    teacher, student = weights.locate(config.teacher.checkpoint), weights.locate(config.student.checkpoint)
    return Recipe(
        stage=stage,
        rollout=config.rollout,
        judge=judging.settings,
        judges=judging.models,
        seed=config.run.seed,
        student_digest=student_digest,
        made_with={
            "reference_digest": reference_digest,
            "mask": dataclasses.asdict(config.teacher.mask),
            "top_k": config.teacher.top_k,
            "teacher_dtype": config.teacher.engine.dtype,
            "student_dtype": config.student.engine.dtype,
            "teacher_prompts": weights.prompt_digest(teacher),
            "student_prompts": weights.prompt_digest(student),
            "ends": [sorted(reserved.end_ids(one)) for one in (teacher, student)],
        },
    )


def evaluate(
    pool: Pool, judge: Pool | None, rule: Rule, problems: Sequence[Problem], max_tokens: int, title: str
) -> list[Marked]:
    """Greedy answers of a pool's model to the held-out questions, marked by the judge, or by the rule without one.

    An answer whose verdict cannot be read counts as wrong here. What a replica was doing when its process died is
    asked again. A question that the model's engine does not take has no mark but the reason.
    """
    shares = list(batches(problems, _EVALUATED_AT_A_TIME))
    marked: dict[int, list[Marked]] = {}

    def answer(number: int) -> None:
        share = shares[number]
        answers: list[Reply | Refused] = pool.call_again("answer_greedily", share, max_tokens)
        ruled = [
            isinstance(said, Reply) and RULES[rule](said.text, one) for one, said in zip(share, answers, strict=True)
        ]
        if judge is None:
            marked[number] = mark(share, answers, ruled)
            return
        asked = [[said.text] if isinstance(said, Reply) else [] for said in answers]
        verdicts: list[list[Verdict]] = judge.call_again("judge", share, asked, False)
        correct = [any(verdict.accuracy == 1 for verdict in group) for group in verdicts]
        marked[number] = mark(share, answers, correct, ruled)

    with track(title, len(problems)) as advance, threads(pool.most_calls_at_once) as each:
        for number in each(answer, range(len(shares))):
            advance(len(shares[number]))
    return [one for number in range(len(shares)) for one in marked[number]]


def say_accuracy(title: str, marked: Sequence[Marked], longest: int, rule: Rule) -> None:
    """What came of the held-out questions. longest: the tokens at which answers were cut."""
    measured, cut = accuracy([one for one in marked if not one.refused]), cut_share(marked)
    told = f"; {cut:.1%} of the answers cut" if cut else ""
    say(f"{title}: {measured.value:.1%} ({measured.low:.1%} to {measured.high:.1%}, n = {measured.n}{told})")
    for remark in (remarks.held_out_cut(cut, longest), remarks.held_out_disagreement(title, marked, rule)):
        if remark:
            say(remark)
    if aside := len(marked) - measured.n:
        say(f"{aside} held-out questions could not be asked and count in no accuracy of the run (quarantine.jsonl)")
