import dataclasses
import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf

from masters_ray import checks, store
from masters_ray import config as configuration
from masters_ray.config import Config
from masters_ray.errors import ConfigError, DataError, StoreError
from masters_ray.files import write_json
from masters_ray.pipeline import context, held_out, inputs, online
from masters_ray.pipeline import run as pipeline
from masters_ray.pipeline.held_out import HeldOut, all_marks
from masters_ray.pipeline.run_dir import RunDirectory
from masters_ray.records import AnswerTally, RolloutGroup
from tests.builders import group, png, table_of
from tests.conftest import NO_CHECKS, PAIR, ROOT
from tests.fakes import FakePool, FakeReplicas

QUESTIONS = ("what color is it?", "what colour is it?", "which colour?", "what color is it?")
ROWS = len(QUESTIONS)


def block(of_teacher: dict[str, int | None] | None = None) -> FakeReplicas:
    """The replicas of some stages. Its judges say that red is right; the teacher's may be told otherwise."""
    return FakeReplicas(teacher_judge=FakePool("teacher_judge", of_teacher))


FEW = (
    *("rollout.teacher_answers=2", "rollout.student_answers=2", "rollout.batch_rows=2"),
    *(f"rollout.max_{what}_share=1" for what in ("set_aside", "unjudged", "empty")),
    NO_CHECKS,
)


def two_teachers(folder: Path, *changes: str) -> Config:
    """Of two stages each, which all see the same questions."""
    content: Any = OmegaConf.to_container(OmegaConf.load(ROOT / "conf" / "demo.yaml"))
    stages = {"stages": [{"ratio": 0.2}, {"ratio": 0.0}], "stage_data": "all"}
    content["schedule"] = stages
    (folder / "one.png").write_bytes(png())
    rows = [{"id": str(id), "question": one, "answer": "red", "image": "one.png"} for id, one in enumerate(QUESTIONS)]
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"path": str(folder / "questions.jsonl")}
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


def test_a_second_teacher_takes_answers_over_with_verdicts_of_its_own(tmp_path: Path, generate: Generate) -> None:
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
    writer.write(table_of([row]), store.Account(asked={row.position: "a"}, rejected={}, noted=noted))
    for folder in (begun, begun, store.Folder(tmp_path / "empty")):
        online.finish(folder, "exact")
    assert [one.position for one in store.read(begun)] == [row.position]
    assert store.read_manifest(tmp_path / "empty") is None


def test_refused_held_out_questions_are_quarantined_once_and_limited(tmp_path: Path, generate: Generate) -> None:
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
    held_out = HeldOut(config, directory.root / "evaluation", inputs.load(config, directory.data)[1])
    held_out.measure(replicas.pools, "student", "student_after", "digest")  # type: ignore[arg-type]
    assert sum(one.refused is not None for one in all_marks(directory)["student_after"]) == 3
    replicas.pools["student"].refuses |= {"0"}
    with pytest.raises(DataError, match="4 of 4 held-out questions could not be asked"):
        held_out.measure(replicas.pools, "student", "student_after", "digest")  # type: ignore[arg-type]


Rows = list[dict[str, Any]]
SMALL = ("learner.groups_per_step=2", "rollout.batch_rows=1", "growth=[]")


def edit(folder: Path, change: Callable[[Rows], Any], name: str = "questions.jsonl") -> None:
    file = folder / name
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    change(rows)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def relabel(rows: Rows) -> None:
    next(row for row in rows if row["id"] == "2")["answer"] = "blue"


@pytest.fixture
def config(tmp_path: Path, generate: Generate) -> Config:
    """Of a run whose two stages are stored."""
    config = two_teachers(tmp_path, *SMALL)
    generate(config, block())
    return config


def validate(folder: Path, *words: str) -> None:
    checks.validate(folder / "two.yaml", [f"run.dir={folder / 'run'}", *FEW, *SMALL, *words], all_rows=False)


@pytest.mark.parametrize("finished", [True, False])
def test_changed_data_are_refused_and_another_run_takes_over_what_is_as_it_was(
    finished: bool, config: Config, tmp_path: Path, generate: Generate
) -> None:
    for index in () if finished else (0, 1):
        Path(str(RunDirectory(config).stage(index) / "manifest.json")).unlink()
    edit(tmp_path, relabel)
    told = r"stage-0: its rows were made by something else.*data: '\w+' there, '\w+' now; questions.* in rollout\.reuse"
    with pytest.raises(StoreError, match=told):
        generate(config, *([] if finished else [block()]))
    with pytest.raises(ConfigError, match="rollout.store: .* found data: .*rollout.reuse"):
        validate(tmp_path)
    elsewhere = [f"run.dir={tmp_path / 'other'}", f"rollout.reuse=[{tmp_path / 'run' / 'rollouts'}]"]
    other, replicas = configuration.load(tmp_path / "two.yaml", [*FEW, *SMALL, *elsewhere]), block()
    rows = generate(other, replicas)[0]
    assert replicas.pools["teacher"].wrote == ["2", "2"], "in both stages, and nothing else"
    assert sorted(row.problem.id for row in rows) == ["0", "1", "2", "3"]


def test_an_order_that_the_teacher_tells_anew_is_compared_once_it_is_known(tmp_path: Path, generate: Generate) -> None:
    """The stores are finished, and the file of difficulties is gone."""
    config = two_teachers(tmp_path, *SMALL, "data.order=easy_to_hard")
    first, directory = block(), RunDirectory(config)
    first.pools["teacher"].rated = {"0": 4, "1": 3, "2": 2, "3": 1}
    assert [row.problem.id for row in generate(config, first)[0]] == ["3", "2", "1", "0"]
    shutil.rmtree(directory.file("difficulty"))
    generate(config)  # nothing needs the order
    replicas = block()
    replicas.pools["teacher"].rated = {"0": 1, "1": 2, "2": 3, "3": 4}
    directory.stage(1).remove("shard-00000001.parquet")
    with pytest.raises(StoreError, match="stage-0: its rows were made by something else .questions: "):
        generate(config, replicas)


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("teacher.top_k=16", "top_k: 32 there, 16 now"),
        ("rollout.sampling.temperature=0.3", "'temperature': 0.3"),
        ("judge.of_student=rule", "'of_student': 'rule'"),
        ("teacher.mask.vision=true", "'vision': True"),
    ],
)
def test_a_finished_store_of_another_recipe_is_not_taken(
    word: str, told: str, config: Config, tmp_path: Path, generate: Generate
) -> None:
    """The settings of the run that made it are gone, or it lies elsewhere."""
    RunDirectory(config).file("settings.json").unlink()
    config = two_teachers(tmp_path, *SMALL, word)
    with pytest.raises(StoreError, match=f"stage-0: its rows were made by something else .*{told}"):
        generate(config)
    with pytest.raises(ConfigError, match=f"rollout.store: .*{told}"):
        validate(tmp_path, word)


def test_a_run_without_online_iterations_needs_the_questions_of_all(tmp_path: Path, generate: Generate) -> None:
    config = two_teachers(tmp_path, *SMALL, "rollout.online_fraction=0.5")
    generate(config, block())
    RunDirectory(config).file("settings.json").unlink()
    with pytest.raises(StoreError, match=r"stage-0: finished without 2 questions of its stage, by a larger"):
        generate(two_teachers(tmp_path, *SMALL))


def test_rows_of_a_teacher_that_was_written_over_are_not_taken(tmp_path: Path, generate: Generate) -> None:
    teacher = shutil.copytree(PAIR / "teacher", tmp_path / "teacher")
    config = two_teachers(tmp_path, *SMALL, f"teacher.checkpoint={teacher}")
    measure(config, generate, "student_before", "teacher")
    shutil.copy(PAIR / "student" / "model.safetensors", teacher)
    with pytest.raises(StoreError, match="made by a teacher with other weights than .*teacher has now"):
        measure(config, generate)


def test_only_what_the_student_has_not_learned_from_is_made_again(config: Config, generate: Generate) -> None:
    """A checkpoint after a step, with questions 0 and 1 of the first stage."""
    checkpoint = {"step": 1, "loss": 1.0, "workers": 1, "sha256": {}}
    write_json(RunDirectory(config).learner / "checkpoints" / "step-00000001" / "rank-00000.json", checkpoint)
    folder, replicas = RunDirectory(config).stage(0), block()
    last = list(store.read(folder))[3].problem.id
    folder.remove("shard-00000003.parquet")
    generate(config, replicas)
    assert replicas.pools["teacher"].wrote == [last]
    folder.remove("shard-00000001.parquet")
    with pytest.raises(StoreError, match=r"00000001.parquet: in the manifest, but gone\. The student has learned"):
        generate(config)


def test_once_the_student_is_trained_a_change_of_the_data_is_said_and_nothing_is_made_again(
    config: Config, tmp_path: Path, generate: Generate, capsys: pytest.CaptureFixture[str]
) -> None:
    RunDirectory(config).student.mkdir()
    edit(tmp_path, relabel)
    generate(config)
    told = capsys.readouterr().out
    assert "stage-1: its rows were made by something else (data: " in told
    assert "The run is finished with the student that has learned from them" in told


@pytest.mark.parametrize("name", ["shard-00000001.parquet", "manifest.json", "key.json"])
def test_validate_leaves_a_damaged_file_to_the_run_which_makes_that_one_again(
    name: str, config: Config, tmp_path: Path, generate: Generate
) -> None:
    folder, replicas = RunDirectory(config).stage(1), block()
    before = [row.problem.id for row in store.read(folder)]
    content = bytearray(folder.read(name))
    content[20] ^= 1
    folder.write(name, bytes(content))
    validate(tmp_path)
    after = [row.problem.id for row in generate(config, replicas)[1]]
    assert replicas.pools["teacher"].wrote == ([before[1]] if name.startswith("shard") else [])
    assert after == before
    assert store.survey(folder).broken == {}


def measure(config: Config, generate: Generate, *names: str) -> list[list[str]]:
    """The labels that each evaluation of a call is of; engines start only when ``names`` are to be measured."""
    before = {name: RunDirectory(config).evaluation(name) for name in ("student_before", "teacher")}
    stamps = {name: file.stat().st_mtime_ns if file.exists() else 0 for name, file in before.items()}
    generate(config, *([block()] if names else []), measure=True)
    assert [name for name, file in before.items() if file.stat().st_mtime_ns != stamps[name]] == list(names)
    return [sorted(one.label for one in held_out.read_marks(file)) for file in before.values()]


def test_accuracies_are_of_the_held_out_questions_that_are_there(tmp_path: Path, generate: Generate) -> None:
    apart = two_teachers(tmp_path, *SMALL, f"data.held_out.path={tmp_path / 'held_out.jsonl'}")
    shutil.copy(tmp_path / "questions.jsonl", tmp_path / "held_out.jsonl")
    both = ("student_before", "teacher")
    assert measure(apart, generate, *both) == [["red"] * 4] * 2
    edit(tmp_path, lambda rows: rows.reverse(), "held_out.jsonl")
    measure(apart, generate)
    edit(tmp_path, relabel, "held_out.jsonl")
    assert measure(apart, generate, *both) == [["blue", "red", "red", "red"]] * 2
    edit(tmp_path, lambda rows: rows.pop(), "held_out.jsonl")
    assert [len(labels) for labels in measure(apart, generate, *both)] == [3, 3]
    cut = RunDirectory(apart).evaluation("teacher")
    cut.write_text(cut.read_text()[:40])
    measure(apart, generate, "teacher")
