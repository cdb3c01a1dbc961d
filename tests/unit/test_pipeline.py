"""A run's rollouts with stand-ins for the replicas."""

import dataclasses
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf

from masters_ray import config as configuration
from masters_ray import store
from masters_ray.config import Config
from masters_ray.errors import DataError
from masters_ray.pipeline import context, inputs, online
from masters_ray.pipeline import run as pipeline
from masters_ray.pipeline.held_out import HeldOut, all_marks
from masters_ray.pipeline.run_dir import RunDirectory
from masters_ray.records import AnswerTally, RolloutGroup
from tests.builders import group, png
from tests.conftest import PAIR, ROOT
from tests.fakes import FakePool, FakeReplicas

QUESTIONS = ("what color is it?", "what colour is it?", "which colour?", "what color is it?")
ROWS = len(QUESTIONS)
Verdicts = dict[str, int | None]


def block(of_student: Verdicts | None = None, of_teacher: Verdicts | None = None) -> FakeReplicas:
    """The replicas of some stages. What its two judges say: that red is right, unless something else is given."""
    return FakeReplicas(judge=FakePool("judge", of_student), teacher_judge=FakePool("teacher_judge", of_teacher))


FEW = (
    *("rollout.teacher_answers=2", "rollout.student_answers=2", "rollout.batch_rows=2"),
    *(f"rollout.max_{what}_share=1" for what in ("set_aside", "unjudged", "empty")),
)


def two_teachers(folder: Path, *changes: str) -> Config:
    """Of two stages each, which all see the same questions."""
    content: Any = OmegaConf.to_container(OmegaConf.load(ROOT / "conf" / "demo.yaml"))
    stages = {"stages": [{"ratio": 0.2}, {"ratio": 0.0}], "stage_data": "all"}
    content["schedule"] = stages
    (folder / "one.png").write_bytes(png())
    rows = [{"id": str(id), "question": one, "answer": "red", "image": "one.png"} for id, one in enumerate(QUESTIONS)]
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"format": "jsonl", "path": str(folder / "questions.jsonl")}
    content["data"] = {"train": source, "held_out": source}
    content["growth"] = [{"teacher": content["teacher"] | {"checkpoint": str(PAIR / "student")}, "schedule": stages}]
    content["teacher"]["checkpoint"] = str(PAIR / "teacher")
    content["student"]["checkpoint"] = str(PAIR / "student")
    file = folder / "two.yaml"
    file.write_text(OmegaConf.to_yaml(OmegaConf.create(content)))
    return configuration.load(file, [f"run.dir={folder / 'run'}", *FEW, *changes])


Generate = Callable[..., list[list[RolloutGroup]]]


@pytest.fixture
def generate(monkeypatch: pytest.MonkeyPatch) -> Generate:
    def with_blocks(config: Config, *blocks: FakeReplicas, measure: bool = False) -> list[list[RolloutGroup]]:
        """The rows of every stage. blocks: the replicas of each teacher that still has something to do."""
        left = list(blocks)
        monkeypatch.setattr(context, "Replicas", lambda _: left.pop(0))
        folders = pipeline.generate(config, RunDirectory(config), "two.yaml", measure=measure)
        assert not left
        return [list(store.read(folder)) for folder in folders]

    return with_blocks


def of_student(row: RolloutGroup) -> list[int | None]:
    return [one.judged.accuracy for one in row.answers if one.judged.answer.source == "student"]


def test_a_second_teacher_that_judges_is_another_judge_and_each_takes_over_answers_with_its_own_verdicts(
    tmp_path: Path, generate: Generate
) -> None:
    """What the first could not read is not lost to the second."""
    config = two_teachers(tmp_path, "judge.of_student=teacher", "judge.of_teacher=teacher")
    first, second = block(of_teacher={"red": 1, "blue": None}), block(of_teacher={"red": 0, "blue": 1})
    stages = generate(config, first, second)
    assert [[of_student(row) for row in rows] for rows in stages] == [[[1]] * ROWS] * 2 + [[[0, 1]] * ROWS] * 2
    for replicas in (first, second):
        assert sorted(replicas.pools["student"].wrote) == sorted(row.problem.id for row in stages[0]), "in one stage"
    assert Counter(second.pools["teacher_judge"].judged) == {"red": ROWS, "blue": ROWS}, "every case once"
    for before, after in zip(stages[2], stages[3], strict=True):
        for one, other in zip(before.answers, after.answers, strict=True):
            assert one.judged.answer == other.judged.answer
            assert np.array_equal(one.reference_logprobs, other.reference_logprobs)


def test_the_store_of_online_iterations_is_closed_once_and_an_empty_one_not_at_all(tmp_path: Path) -> None:
    """Also by a call after the one that was killed before it came to that."""
    noted = {"tally": dataclasses.asdict(AnswerTally(rows=1))}
    begun, row = store.Folder(tmp_path / "begun"), group()
    writer = store.Writer(begun, {})
    writer.write(store.table_of([row]), store.Account(asked={row.position: "a"}, rejected={}, noted=noted))
    for folder in (begun, begun, store.Folder(tmp_path / "empty")):
        online.finish(folder, "exact")
    assert [one.position for one in store.read(begun)] == [row.position]
    assert store.read_manifest(tmp_path / "empty") is None


def test_held_out_questions_that_a_model_cannot_be_asked_stand_in_the_quarantine_once_and_their_limit_stops_the_run(
    tmp_path: Path, generate: Generate
) -> None:
    config = two_teachers(tmp_path, "rollout.teacher_answers=2", "rollout.student_answers=0")
    first, second = block(), block()
    first.pools["student"].refuses = second.pools["teacher"].refuses = {"1"}
    config.rollout.max_set_aside_share = 0.1
    with pytest.raises(DataError, match="1 of 4 held-out questions could not be asked.*max_set_aside_share allows 0.1"):
        generate(config, first, measure=True)
    config.rollout.max_set_aside_share = 0.25
    generate(config, first, second, measure=True)
    rows = [json.loads(line) for line in (tmp_path / "run" / "quarantine.jsonl").read_text().splitlines()]
    expected = {"row": "held-out question 1", "reason": "too long", "kind": "engine"}
    assert [row for row in rows if row["row"].startswith("held-out")] == [expected]


def test_once_the_student_has_learned_questions_that_are_gone_cost_their_marks_alone(tmp_path: Path) -> None:
    config = two_teachers(tmp_path, "rollout.max_set_aside_share=0.1")
    replicas = block()
    replicas.pools["student"].refuses = {"1", "2", "3"}
    directory = RunDirectory(config)
    directory.root.mkdir(parents=True, exist_ok=True)
    held_out = HeldOut(config, directory, inputs.load(config, directory.data)[1].problems)
    held_out.measure(replicas.pools, "student", "student_after", "digest")  # type: ignore[arg-type]
    assert sum(one.refused is not None for one in all_marks(directory)["student_after"]) == 3
    replicas.pools["student"].refuses |= {"0"}
    with pytest.raises(DataError, match="4 of 4 held-out questions could not be asked"):
        held_out.measure(replicas.pools, "student", "student_after", "digest")  # type: ignore[arg-type]
