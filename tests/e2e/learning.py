"""Stored rollouts and a run of the real learner on them, for tests; and a driver of its own that a test can kill:
``python -m tests.e2e.learning FOLDER`` trains on ``FOLDER/rollouts`` and prints every step as a line of JSON."""

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

from masters_ray import cluster
from masters_ray.config import Cluster, Learner, Reward
from masters_ray.kernels.packing import pack
from masters_ray.learner import job as messages
from masters_ray.learner.job import LearnerJob, Report, StagePlan, TakenStep
from masters_ray.learner.trainer import fit
from masters_ray.models import hf, weights
from masters_ray.models.chat import Chat
from masters_ray.records import Problem, RolloutGroup, StepMetrics
from tests.builders import group, iterations, scored, written
from tests.conftest import PAIR
from tests.tensors import prompt_of

T = TypeVar("T")
RATE = 1e-4
STAGES = (5, 4)
"""Groups of each."""
ONE_BY_ONE = {"groups_per_step": 1, "checkpoint_every": 2, "cpus": 0.5}


def rollouts(problems: Sequence[Problem]) -> list[RolloutGroup]:
    """Nine groups in two stages, two of them without pictures, answers of several lengths, with the untrained student's
    own log-probabilities."""
    model, chat = hf.load_model(PAIR / "student", "float32"), Chat(PAIR / "student")
    student, rows = hf.PackedStudent(model, logits_bytes=2**26), []
    for index, asked in enumerate(problems[: sum(STAGES)]):
        problem = dataclasses.replace(asked, pictures=()) if index in (3, 6) else asked
        tokens = ([40 + index, 41, 2], [50 + index, 2], [60, 61, 62, 2])
        answers = [
            scored(ids, k=4, seed=3 * index + place, accuracy=right, source="student" if place else "teacher")
            for place, (ids, right) in enumerate(zip(tokens, (1, index % 2, 0), strict=True))
        ]
        row = group(answers, position=index, stage=int(index >= STAGES[0]), of=problem)
        prompt = prompt_of(model, chat, problem)
        with torch.no_grad():
            logprobs, *_ = student(pack([row], [prompt], pad_id=0))
        pieces = logprobs.split(list(map(len, tokens)))
        referred = tuple(
            dataclasses.replace(answer, reference_logprobs=piece.numpy())
            for answer, piece in zip(answers, pieces, strict=True)
        )
        rows.append(dataclasses.replace(row, answers=referred, prompt_tokens=len(prompt.input_ids)))
    return rows


def stored(folder: Path, rows: Sequence[RolloutGroup]) -> list[Path]:
    """One store per stage."""
    folders = [folder / f"stage-{stage}" for stage in range(len(STAGES))]
    for stage, place in enumerate(folders):
        written(place, {"stage": stage}, [row for row in rows if row.stage == stage]).finish({})
    return folders


def job(root: Path, **settings: Any) -> LearnerJob:
    usual: dict[str, Any] = {"cpus": 0.5, "dtype": "float32", "zero_stage": 0, "groups_per_step": 4}
    return LearnerJob(
        checkpoint=str(PAIR / "student"),
        settings=Learner(**usual | {"learning_rate": RATE} | settings),
        reward=Reward(),
        seed=0,
        stages=(StagePlan(stage=0, ratio=0.2, rows=STAGES[0]), StagePlan(stage=1, ratio=0.0, rows=STAGES[1])),
        iterations=iterations(STAGES, (usual | settings)["groups_per_step"]),
        export_to=root / "student",
        storage=root / "learner",
    )


class Told:
    """Everything that a worker group reported."""

    def __init__(self) -> None:
        self.reports: list[Report] = []

    def all(self, kind: type[T]) -> list[T]:
        return [one for one in self.reports if isinstance(one, kind)]

    @property
    def steps(self) -> list[StepMetrics]:
        return [one.metrics for one in self.all(TakenStep)]


def train(root: Path, folders: list[Path], **settings: Any) -> Told:
    """The student lies in ``root/student`` afterwards."""
    told = Told()
    fit(job(root, **settings), folders, told.reports.append)
    return told


def state(folder: Path) -> dict[str, torch.Tensor]:
    """A checkpoint's tensors in float32."""
    return {name: tensor.float() for name, tensor in weights.tensors(folder)}


def show(news: Report) -> None:
    if isinstance(news, TakenStep):
        print("STEP " + json.dumps(dataclasses.asdict(news.metrics)), flush=True)
    elif isinstance(news, str | messages.Told):
        print("NOTE " + (news if isinstance(news, str) else news.text), flush=True)


if __name__ == "__main__":
    root = Path(sys.argv[1])
    with cluster.connected(Cluster(local_cpus=4)):
        fit(job(root, **ONE_BY_ONE), [root / "rollouts" / f"stage-{stage}" for stage in range(len(STAGES))], show)
