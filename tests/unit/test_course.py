"""The student is measured while it learns: at which steps, once each whatever ends the run, and which one is kept."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from examples import easy_vqa
from masters_ray import data
from masters_ray.config import Config
from masters_ray.evaluate import Marked
from masters_ray.learner.job import LearnerJob
from masters_ray.pipeline import context, course, inputs, learning
from masters_ray.pipeline.context import ReplicaOwner, RunContext
from masters_ray.pipeline.held_out import write_marks
from masters_ray.pipeline.journal import Journal
from masters_ray.pipeline.run_dir import RunDirectory
from masters_ray.records import Problem, Reply
from masters_ray.replicas.spec import ReplicaSpec
from tests.builders import group, written
from tests.conftest import PAIR, ROOT
from tests.fakes import FakePool, FakeReplicas
from tests.unit.test_pipeline import two_teachers

RIGHT = {"step-1": 1, "step-2": 3, "step-3": 3, "step-4": 2, "student": 4, "stage-0": 3, "stage-1": 2}
"""Name of a student's directory → how many of the four questions it answers."""


class Learned(FakePool):
    def __init__(self, right: int) -> None:
        super().__init__("student")
        self._right = right

    def answer_greedily(self, problems: list[Problem], max_tokens: int) -> list[Any]:
        return [Reply(text="red" if int(one.id) < self._right else "blue", finish="stop") for one in problems]


class Run:
    """Of four optimizer steps in two stages, with stand-ins for the learner and the engines."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch, *words: str) -> None:
        few = ("growth=[]", "learner.groups_per_step=2", "evaluation.marked_by=rule")
        self.config: Config = two_teachers(folder, *few, *words)
        self.directory = RunDirectory(self.config)
        self.asked: list[str] = []
        self.dies_at = ""
        for index in (0, 1):
            rows = [group(position=position, stage=index) for position in range(4)]
            written(self.directory.stage(index), {}, rows).finish({"teacher_digest": "t"})
        patch.setattr(learning, "fit", self._fit)
        patch.setattr(context, "Replicas", self._replicas)

    def _fit(self, job: LearnerJob, *_: object) -> None:
        self._note(f"learn to {job.until}")
        shutil.copytree(PAIR / "student", job.export_to)
        if job.settings.lora.rank:
            shutil.copytree(PAIR / "student", job.adapters_to)

    def _replicas(self, specs: Sequence[ReplicaSpec]) -> FakeReplicas:
        name = Path(specs[0].checkpoint).name
        self._note(f"measure {name}")
        return FakeReplicas(student=Learned(RIGHT[name]))

    def _note(self, what: str) -> None:
        if what == self.dies_at:
            raise KeyboardInterrupt
        self.asked.append(what)

    def call(self, dies_at: str = "") -> list[str]:
        """One call of the program from the learner on, with what it asked for. dies_at: what ends it."""
        self.asked, self.dies_at = [], dies_at
        with Journal(self.directory, "c.yaml") as journal:
            run = RunContext(self.config, self.directory, journal, ReplicaOwner(self.config, None))
            if run.refreshes:
                learning.learn(run, run.stages[:1], self.directory.student_after(0))
            learning.learn(run, run.stages, self.directory.student)
        return self.asked

    @property
    def left(self) -> list[str]:
        return sorted(path.name for path in self.directory.students.glob("*"))


def test_the_learner_ends_for_each_measurement_and_the_student_of_the_last_step_is_the_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path, monkeypatch, "evaluation.every=3")
    assert run.call() == ["learn to 3", "measure step-3", "learn to 4"]
    assert run.left == ["step-3.json"]
    assert run.directory.student.exists()
    assert run.call() == []


def test_a_run_that_is_killed_anywhere_repeats_no_measurement_and_keeps_the_best_student(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of steps 2 and 3, which are equally good, the later."""
    run = Run(tmp_path, monkeypatch, "evaluation.every=1", "learner.keep=best", "learner.lora.rank=2")
    with pytest.raises(KeyboardInterrupt):
        run.call(dies_at="measure step-2")
    assert run.asked == ["learn to 1", "measure step-1", "learn to 2"]
    assert run.left == ["step-1", "step-1.json", "step-1_adapters", "step-2", "step-2_adapters"]
    with pytest.raises(KeyboardInterrupt):
        run.call(dies_at="learn to 4")
    assert run.asked == ["measure step-2", "learn to 3", "measure step-3"]
    assert run.left == ["step-1.json", "step-2.json", "step-3", "step-3.json", "step-3_adapters"]
    (run.directory.students / "step-3" / "mark").touch()
    assert run.call() == ["learn to 4", "measure step-4"]
    assert (run.directory.student / "mark").exists()
    assert (run.directory.root / "student_adapters").exists()
    assert run.left == [f"step-{step}.json" for step in (1, 2, 3, 4)]


def test_a_student_that_writes_a_stage_is_measured_where_it_lies_and_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refreshed = "rollout.student_refresh=stage"
    run = Run(tmp_path, monkeypatch, "evaluation.every=stage", "learner.keep=best", refreshed)
    assert run.call() == ["learn to 2", "measure stage-0", "learn to 4", "measure step-4"]
    assert run.left == ["stage-0", "step-2.json", "step-4.json"]
    assert run.directory.student.exists()


def test_a_step_that_a_run_has_passed_without_measuring_it_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """evaluation.every was set, or made smaller, after a checkpoint at step 2."""
    run = Run(tmp_path, monkeypatch, "evaluation.every=1")
    checkpoint = learning.checkpoints.Checkpoint(folder=tmp_path, step=2, workers=1)
    monkeypatch.setattr(learning.checkpoints, "find", lambda _: [checkpoint])
    assert run.call() == ["learn to 2", "measure step-2", "learn to 3", "measure step-3", "learn to 4"]


def marked(right: int, of: int = 4) -> list[Marked]:
    asked: dict[str, Any] = {"kind": "colour", "label": "red", "answer": "red", "finish": "stop"}
    return [Marked(id=str(number), correct=number < right, **asked) for number in range(of)]


def test_the_summary_has_each_step_and_what_the_choice_says_of_questions_that_had_no_part_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Questions 0 to 3 are asked on the way, 0 to 5 before and after; before, the first is answered, after, all."""
    marks = {"teacher": marked(6, 6), "student_before": marked(1, 6), "student_after": marked(6, 6)}
    for keep, steps in (("last", [(0, 0.25), (2, 0.75), (4, 1.0)]), ("best", [(0, 0.25), (2, 0.75)])):
        (tmp_path / keep).mkdir()
        run = Run(tmp_path / keep, monkeypatch, "evaluation.every=2", f"learner.keep={keep}")
        with Journal(run.directory, "c.yaml") as journal:
            found = RunContext(run.config, run.directory, journal, ReplicaOwner(run.config, None))
        assert course.facts(found, marks) == ([], None)
        write_marks(run.directory.students / "step-2.json", marked(3), "questions", "model")
        points, kept = course.facts(found, marks)
        assert [(one.step, one.accuracy.value) for one in points] == steps
        assert {one.accuracy.n for one in points} == {4}
        if keep == "last":
            assert kept is None
            continue
        assert kept is not None
        assert (kept.step, kept.questions) == (2, 4)
        others = [(one.value, one.n) for one in (kept.others_before, kept.others_after)]
        assert others == [(0.0, 2), (1.0, 2)]


def test_some_questions_are_the_same_each_time_and_have_each_kind_in_turn(tmp_path: Path) -> None:
    config = two_teachers(
        tmp_path, "growth=[]", f"data.held_out={{path: {ROOT / easy_vqa.FOLDER}/test.jsonl}}", "data.held_out_rows=60"
    )
    loaded: data.Problems = inputs.load(config, tmp_path / "data")[1]
    assert inputs.some(loaded, None, 0) is inputs.some(loaded, 60, 0) is loaded
    assert inputs.digest_of(list(loaded)) == inputs.digest_of(loaded)
    chosen = inputs.some(loaded, 9, seed=1)
    assert sorted(one.kind for one in chosen) == ["colour"] * 3 + ["place"] * 3 + ["shape"] * 3
    assert [one.id for one in chosen] == [one.id for one in inputs.some(loaded, 9, seed=1)]
    assert {one.id for one in chosen} < {one.id for one in loaded}
    assert [one.id for one in chosen] != [one.id for one in inputs.some(loaded, 9, seed=2)]
