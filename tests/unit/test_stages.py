from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from masters_ray import config as configuration
from masters_ray import store
from masters_ray.actors.judge import Verdict
from masters_ray.config import Rollout
from masters_ray.errors import CheckpointError, ReplicaError
from masters_ray.masks import MaskReport
from masters_ray.pipeline import stages
from masters_ray.records import Answer, Problem
from masters_ray.schedule import Stage
from tests.builders import problem, scores
from tests.conftest import ROOT

DEMO = ROOT / "conf" / "demo.yaml"


def roles(*overrides: str) -> list[tuple[tuple[str, ...], int]]:
    config = configuration.load(DEMO, list(overrides))
    return [(one.spec.roles, one.replicas) for one in stages.deployments(config, 0.2)]


def test_student_and_judge_share_a_process_as_far_as_there_are_both() -> None:
    assert roles() == [(("teacher",), 1), (("student", "judge"), 1)]
    assert roles("teacher.replicas=2", "judge.replicas=2") == [
        (("teacher",), 2),
        (("student", "judge"), 1),
        (("judge",), 1),
    ]
    assert roles("student.replicas=3", "judge.replicas=1") == [
        (("teacher",), 1),
        (("student", "judge"), 1),
        (("student",), 2),
    ]
    assert roles("judge.share_process=false") == [(("teacher",), 1), (("student",), 1), (("judge",), 1)]


def test_the_trained_student_is_measured_beside_the_judge_unless_the_rule_marks(tmp_path: Path) -> None:
    by_rule, by_judge = (
        [
            one.spec
            for one in stages.final_deployments(configuration.load(DEMO, [f"evaluation.marked_by={who}"]), tmp_path)
        ]
        for who in ("rule", "judge")
    )
    assert [(spec.roles, spec.checkpoint) for spec in by_rule] == [(("student",), str(tmp_path))]
    assert [spec.roles for spec in by_judge] == [("student",), ("judge",)]
    assert by_judge[1].checkpoint.endswith("toy/pair/student")


class FakePool:
    """Replicas that answer "red" or "blue" and judge by what the test says."""

    def __init__(self, role: str, verdicts: dict[str, int | None] | None = None, reports: int = 1) -> None:
        self.role = role
        self.calls: list[str] = []
        self._verdicts = verdicts or {"red": 1, "blue": 0}
        self._reports = reports

    def __len__(self) -> int:
        return 2

    def call_all(self, method: str, ratio: float) -> list[MaskReport]:
        return [
            MaskReport(ratio=ratio, sparsity=ratio, matrices=1, digest=f"digest {number}")
            for number in range(self._reports)
        ]

    def call(self, method: str, *arguments: Any) -> Any:
        self.calls.append(method)
        return getattr(self, method)(*arguments)

    def answer(self, problems: list[Problem], sampling: object, count: int, seeds: list[int]) -> list[Any]:
        words = ["red", "blue"]
        return [
            tuple(
                Answer(source=self.role, text=words[index % 2], token_ids=(5 + index, 1))  # type: ignore[arg-type]
                for index in range(count)
            )
            for _ in problems
        ]

    def judge(self, cases: list[Any]) -> list[Verdict]:
        return [Verdict(accuracy=self._verdicts[case.answer], text="said") for case in cases]

    def score(self, problems: list[Problem], answers: list[list[Answer]]) -> list[Any]:
        return [(17, [scores(len(answer.token_ids)) for answer in group]) for group in answers]

    def logprobs(self, problems: list[Problem], answers: list[list[Answer]]) -> list[Any]:
        return [[scores(len(answer.token_ids)).left_out for answer in group] for group in answers]

    def answer_greedily(self, problems: list[Problem], max_tokens: int) -> list[str]:
        return ["red" if int(problem.id) % 2 else "blue" for problem in problems]


class FakeReplicas:
    def __init__(self, **pools: FakePool) -> None:
        self.pools = {
            "teacher": FakePool("teacher"),
            "student": FakePool("student"),
            "judge": FakePool("judge"),
        } | pools


def roll_out(folder: Path, replicas: FakeReplicas, **rollout: int) -> list[Any]:
    settings = Rollout(**({"teacher_answers": 2, "student_answers": 2, "shard_rows": 2} | rollout))  # type: ignore[arg-type]
    numbered = [(position, problem(id=str(position))) for position in range(5)]
    return stages.roll_out(Stage(index=0, ratio=0.2), numbered, replicas, settings, 0, "s", folder)  # type: ignore[arg-type]


def test_a_stage_stores_every_question_in_its_order_with_teacher_and_student_answers(tmp_path: Path) -> None:
    assert roll_out(tmp_path, FakeReplicas()) == []
    rows = list(store.read(tmp_path))
    assert [row.position for row in rows] == [0, 1, 2, 3, 4]
    assert [answer.judged.answer.source for answer in rows[0].answers] == ["teacher", "teacher", "student", "student"]
    assert [answer.judged.accuracy for answer in rows[0].answers] == [1, 0, 1, 0]
    assert (rows[0].teacher_digest, rows[0].student_digest, rows[0].mask_ratio) == ("digest 0", "s", 0.2)
    manifest = store.read_manifest(tmp_path)
    assert manifest is not None
    assert len(manifest.shards) == 3
    made = manifest.made_by
    assert (made["rows"], made["answers"], made["unjudged"], made["judge_rule_agreements"]) == (5, 20, 0, 20)
    assert made["accuracy_by_source"] == {"teacher": 0.5, "student": 0.5}


def test_any_split_of_a_group_is_allowed(tmp_path: Path) -> None:
    replicas = FakeReplicas()
    roll_out(tmp_path, replicas, teacher_answers=0, student_answers=3)
    assert "answer" not in replicas.pools["teacher"].calls
    assert [len(row.answers) for row in store.read(tmp_path)] == [3] * 5


def test_unjudged_answers_are_left_out_and_counted(tmp_path: Path) -> None:
    replicas = FakeReplicas(judge=FakePool("judge", {"red": 1, "blue": None}))
    assert roll_out(tmp_path, replicas) == []
    assert [[answer.judged.answer.text for answer in row.answers] for row in store.read(tmp_path)] == [["red"] * 2] * 5
    manifest = store.read_manifest(tmp_path)
    assert manifest is not None
    assert (manifest.made_by["answers"], manifest.made_by["unjudged"]) == (20, 10)


def test_a_question_with_fewer_than_two_readable_answers_is_set_aside(tmp_path: Path) -> None:
    replicas = FakeReplicas(judge=FakePool("judge", {"red": 1, "blue": None}))
    rejected = roll_out(tmp_path, replicas, teacher_answers=1, student_answers=1)
    assert list(store.read(tmp_path)) != []
    assert rejected == []
    nothing = FakeReplicas(judge=FakePool("judge", {"red": None, "blue": None}))
    rejected = roll_out(tmp_path / "none", nothing)
    assert sorted(one.row for one in rejected) == ["0", "1", "2", "3", "4"]
    assert rejected[0].reason == "the judge could read 0 of 4 answers"
    assert list(store.read(tmp_path / "none")) == []


def test_an_error_of_a_replica_ends_the_stage_without_a_manifest(tmp_path: Path) -> None:
    class Broken(FakePool):
        def judge(self, cases: list[Any]) -> list[Verdict]:
            raise ReplicaError("judge.judge: its process died")

    with pytest.raises(ReplicaError, match="its process died"):
        roll_out(tmp_path, FakeReplicas(judge=Broken("judge")))
    assert store.read_manifest(tmp_path) is None


def test_teachers_with_different_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="hold different weights"):
        roll_out(tmp_path, FakeReplicas(teacher=FakePool("teacher", reports=2)))


def test_held_out_answers_are_marked_by_rule_or_judge_in_their_order() -> None:
    problems = [problem(id=str(number)) for number in range(300)]
    student = FakePool("student")
    by_rule = stages.evaluate(student, None, problems, 8, "t")  # type: ignore[arg-type]
    harsh = FakePool("judge", {"red": 0, "blue": None})
    by_judge = stages.evaluate(student, harsh, problems, 8, "t")  # type: ignore[arg-type]
    assert [one.id for one in by_rule] == [str(number) for number in range(300)]
    assert [one.correct for one in by_rule] == [bool(number % 2) for number in range(300)]
    assert not any(one.correct for one in by_judge)


def test_sampling_seeds_differ_by_question_source_and_stage_and_fit_an_engine() -> None:
    seeds = {
        stages.sampling_seed(seed, stage, source, name)
        for seed in (0, 1)
        for stage in (0, 1)
        for source in ("teacher", "student")
        for name in ("a", "b")
    }
    assert len(seeds) == 16
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert stages.sampling_seed(0, 0, "teacher", "a") == stages.sampling_seed(0, 0, "teacher", "a")
