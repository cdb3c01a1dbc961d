from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from masters_ray import store
from masters_ray.actors.judge import Verdict
from masters_ray.config import Rollout
from masters_ray.errors import CheckpointError, ReplicaError
from masters_ray.pipeline import rollouts
from masters_ray.schedule import Stage
from tests.builders import problem
from tests.fakes import FakePool, FakeReplicas


def roll_out(folder: Path, replicas: FakeReplicas, **rollout: int) -> list[Any]:
    settings = Rollout(**({"teacher_answers": 2, "student_answers": 2, "shard_rows": 2} | rollout))  # type: ignore[arg-type]
    numbered = [(position, problem(id=str(position))) for position in range(5)]
    return rollouts.roll_out(Stage(index=0, ratio=0.2), numbered, replicas, settings, 0, "s", folder)  # type: ignore[arg-type]


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


def test_each_model_scores_only_what_it_has_not_written(tmp_path: Path) -> None:
    replicas = FakeReplicas()
    roll_out(tmp_path, replicas)
    assert replicas.pools["teacher"].scored == [(7, 1)] * 5
    assert replicas.pools["student"].scored == [(5, 1)] * 5
    for row in store.read(tmp_path):
        assert [answer.judged.answer.token_ids for answer in row.answers] == [(5, 1), (6, 1), (6, 1), (7, 1)]
        second, same = row.answers[1:3]
        assert np.array_equal(second.teacher.top_logprobs, same.teacher.top_logprobs)
        assert row.prompt_tokens == 17
        assert all(answer.reference_logprobs.tolist() == [-1.0, -1.0] for answer in row.answers)


def test_a_question_that_an_engine_refuses_is_set_aside_and_the_others_are_stored(tmp_path: Path) -> None:
    replicas = FakeReplicas()
    replicas.pools["teacher"].refuses = {"1"}
    replicas.pools["student"].refuses = {"2"}
    replicas.pools["teacher"].refuses_to_score = {"4"}
    rejected = roll_out(tmp_path, replicas)
    assert {one.row: one.reason for one in rejected} == {
        "1": "the teacher's engine refuses it: too long",
        "2": "the student's engine refuses it: too long",
        "4": "the teacher's engine refuses it: too long",
    }
    assert [row.position for row in store.read(tmp_path)] == [0, 3]


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


def test_sampling_seeds_differ_by_question_source_and_stage_and_fit_an_engine() -> None:
    seeds = {
        rollouts.sampling_seed(seed, stage, source, name)
        for seed in (0, 1)
        for stage in (0, 1)
        for source in ("teacher", "student")
        for name in ("a", "b")
    }
    assert len(seeds) == 16
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert rollouts.sampling_seed(0, 0, "teacher", "a") == rollouts.sampling_seed(0, 0, "teacher", "a")
