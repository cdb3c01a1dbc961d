from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from masters_ray import config as configuration
from masters_ray.errors import ConfigError
from masters_ray.pipeline import inputs, stages
from masters_ray.placement import Turns, transfer
from tests.conftest import PAIR, ROOT
from tests.sources import good, jsonl

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


def test_an_engine_on_a_cpu_has_a_cache_of_two_sequences_when_conf_says_nothing() -> None:
    def caches(*words: str) -> list[int | None]:
        keys = [f"{model}.engine.kv_cache_memory_bytes=null" for model in ("teacher", "student")]
        settings = configuration.load(DEMO, [*keys, *words])
        return [one.spec.engine.kv_cache_memory_bytes for one in stages.deployments(settings, 0.2)]

    assert caches() == [2**26, 2**26], "the least"
    lengths = ("max_model_len", "max_num_batched_tokens")
    tokens = [f"{model}.engine.{key}=100000" for model in ("teacher", "student") for key in lengths]
    per_token = [2 * layers * heads_times_width * 4 for layers, heads_times_width in ((5, 2 * 64), (3, 2 * 32))]
    assert caches(*tokens) == [2 * 100_000 * size for size in per_token]
    assert caches("teacher.gpus=1", "student.gpus=1") == [None, None]
    assert caches("student.engine.gpu_memory_utilization=0.3") == [2**26, None]


def test_students_that_join_later_judge_if_the_first_ones_do() -> None:
    def joining(*overrides: str) -> list[tuple[tuple[str, ...], int]]:
        config = configuration.load(DEMO, list(overrides))
        return [(one.spec.roles, one.may_join) for one in stages.deployments(config, 0.2)]

    assert joining() == [(("teacher",), 0), (("student", "judge"), 0)]
    assert joining("teacher.max_replicas=3", "student.replicas=2", "student.max_replicas=6") == [
        (("teacher",), 2),
        (("student", "judge"), 4),
        (("student",), 0),
    ]
    assert joining("student.max_replicas=6", "judge.share_process=false") == [
        (("teacher",), 0),
        (("student",), 5),
        (("judge",), 0),
    ]


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


def test_the_questions_of_a_run_lie_in_its_directory(tmp_path: Path) -> None:
    config = configuration.load(DEMO, ["data.train.rows=5", "data.held_out.rows=3"])
    train, held_out = inputs.load(config, tmp_path / "data")
    assert (len(train.problems), len(held_out.problems)) == (5, 3)
    assert sorted(file.name for file in (tmp_path / "data").glob("*.arrow")) == ["held_out.arrow", "train.arrow"]


def test_questions_that_hold_a_special_token_of_either_model_are_set_aside(tmp_path: Path) -> None:
    teacher = shutil.copytree(PAIR / "teacher", tmp_path / "teacher")
    settings = json.loads((teacher / "tokenizer_config.json").read_text())
    (teacher / "tokenizer_config.json").write_text(json.dumps(settings | {"eot_token": "<end_of_utterance>"}))
    rows = [good(1), good(2, question="<end_of_utterance>"), good(3, answer="<|im_end|>")]
    path = jsonl(tmp_path, rows).path
    words = [f"data.{part}.{key}" for part in ("train", "held_out") for key in ("format=jsonl", f"path={path}")]
    config = configuration.load(DEMO, [*words, f"teacher.checkpoint={teacher}", "data.max_quarantined_share=0.9"])
    for loaded in inputs.load(config, tmp_path / "data"):
        assert [one.id for one in loaded.problems] == ["q1"]
        assert [one.reason.split(" is a ")[0] for one in loaded.rejected] == [
            "question: '<end_of_utterance>'",
            "answer: '<|im_end|>'",
        ]


def test_no_model_writes_a_placeholder_and_no_teacher_an_end_that_the_student_has_not(tmp_path: Path) -> None:
    teacher = shutil.copytree(PAIR / "teacher", tmp_path / "teacher")
    settings = json.loads((teacher / "generation_config.json").read_text())
    (teacher / "generation_config.json").write_text(json.dumps(settings | {"eos_token_id": [2, 0]}))
    both = [[5, 6], [5, 6]]
    assert [list(one.spec.never) for one in stages.deployments(configuration.load(DEMO), 0.2)] == both
    config = configuration.load(DEMO, [f"teacher.checkpoint={teacher}"])
    assert [list(one.spec.never) for one in stages.deployments(config, 0.2)] == [[0, 5, 6], [5, 6]]
    (teacher / "generation_config.json").unlink()
    assert [list(one.spec.never) for one in stages.deployments(config, 0.2)] == both


def test_a_student_that_has_learned_writes_beside_the_reference_that_judges(tmp_path: Path) -> None:
    config = configuration.load(DEMO, ["student.replicas=2", "rollout.student_refresh=stage"])
    found = stages.deployments(config, 0.1, tmp_path)
    assert [(one.spec.roles, one.replicas) for one in found] == [
        (("teacher",), 1),
        (("student",), 2),
        (("reference", "judge"), 1),
    ]
    assert found[1].spec.checkpoint == str(tmp_path)
    assert found[2].spec.checkpoint.endswith("toy/pair/student")


def test_a_teacher_that_judges_has_processes_of_its_own_without_a_mask() -> None:
    both = ["judge.of_teacher=teacher", "judge.of_student=teacher", "judge.replicas=2"]
    assert roles(*both) == [(("teacher",), 1), (("teacher_judge",), 2), (("student",), 1)]
    spec = stages.deployments(configuration.load(DEMO, both), 0.2)[1].spec
    assert spec.mask is None
    assert spec.checkpoint.endswith("toy/pair/teacher")
    by_rule = ["judge.of_teacher=rule", "judge.of_student=rule"]
    assert roles(*by_rule) == [(("teacher",), 1), (("student",), 1)]


ONLINE = ["rollout.online_fraction=1"]
ONE_GPU = ["learner.gpus=1", "student.gpus=1"]


@pytest.mark.parametrize(
    ("words", "beside", "on_one_gpu", "on_two_gpus"),
    [
        ([], "object_store", "object_store", "object_store"),
        (ONE_GPU, "nccl", "ipc", "object_store"),
        (["learner.gpus=1", "student.gpus=0.25"], "object_store", "ipc", "object_store"),
        ([*ONE_GPU, "student.replicas=2"], "nccl", "object_store", "object_store"),
        (["learner.gpus=1"], "object_store", "object_store", "object_store"),
        (["rollout.weight_transfer=gloo"], "gloo", "gloo", "gloo"),
        ([*ONE_GPU, "rollout.weight_transfer=object_store"], "object_store", "object_store", "object_store"),
    ],
)
def test_weights_go_from_gpu_to_gpu_where_both_sides_have_one_of_their_own(
    words: list[str], beside: str, on_one_gpu: str, on_two_gpus: str
) -> None:
    config = configuration.load(DEMO, [*ONLINE, *words])
    one, two = (Turns(cpus=8.0, gpus=gpus) for gpus in (1, 2))
    for turns, expected in ((None, beside), (one, on_one_gpu), (two, on_two_gpus)):
        assert transfer(config, turns) == expected
    by_roles = {each.spec.roles: each.spec.transfer for each in stages.online_deployments(config, 0.2)}
    others = {("teacher",): "object_store", ("reference", "judge"): "object_store"}
    assert by_roles == others | {("student",): beside}


def test_without_online_iterations_it_means_nothing_how_weights_would_go() -> None:
    config = configuration.load(DEMO, ["rollout.weight_transfer=ipc"])
    assert transfer(config, None) == "object_store"


def test_weights_do_not_go_a_way_that_there_is_not() -> None:
    one, two = (Turns(cpus=8.0, gpus=gpus) for gpus in (1, 2))
    for way, fits, bad in (("nccl", [None], [one, two]), ("ipc", [one], [None, two])):
        config = configuration.load(DEMO, [*ONLINE, *ONE_GPU, f"rollout.weight_transfer={way}"])
        assert [transfer(config, turns) for turns in fits] == [way]
        for turns in bad:
            with pytest.raises(ConfigError, match=f"found {way}, and they .*auto takes what fits"):
                transfer(config, turns)
