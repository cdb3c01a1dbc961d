from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from masters_ray import config as configuration
from masters_ray.errors import ConfigError
from masters_ray.pipeline import inputs
from masters_ray.replicas import deployments
from masters_ray.replicas.placement import Turns, transfer
from tests.conftest import PAIR, ROOT
from tests.sources import good, jsonl

DEMO = ROOT / "conf" / "demo.yaml"


def test_an_engine_on_a_cpu_has_a_cache_of_two_sequences_when_conf_says_nothing() -> None:
    def caches(*words: str) -> list[int | None]:
        keys = [f"{model}.engine.kv_cache_memory_bytes=null" for model in ("teacher", "student")]
        settings = configuration.load(DEMO, [*keys, *words])
        return [one.spec.engine.kv_cache_memory_bytes for one in deployments.making(settings, 0.2)]

    assert caches() == [2**26, 2**26], "the least"
    lengths = ("max_model_len", "max_num_batched_tokens")
    tokens = [f"{model}.engine.{key}=100000" for model in ("teacher", "student") for key in lengths]
    per_token = [2 * layers * heads_times_width * 4 for layers, heads_times_width in ((5, 2 * 64), (3, 2 * 32))]
    assert caches(*tokens) == [2 * 100_000 * size for size in per_token]
    assert caches("teacher.gpus=1", "student.gpus=1") == [None, None]
    assert caches("student.engine.gpu_memory_utilization=0.3") == [2**26, None]


def test_the_questions_of_a_run_lie_in_its_directory(tmp_path: Path) -> None:
    config = configuration.load(DEMO, ["data.train.rows=5", "data.held_out.rows=3"])
    train, held_out = inputs.load(config, tmp_path / "data")
    assert (len(train.problems), len(held_out.problems)) == (5, 3)
    assert sorted(file.name for file in (tmp_path / "data").glob("*.sqlite")) == ["held_out.sqlite", "train.sqlite"]


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
    assert [list(one.spec.never) for one in deployments.making(configuration.load(DEMO), 0.2)] == both
    config = configuration.load(DEMO, [f"teacher.checkpoint={teacher}"])
    assert [list(one.spec.never) for one in deployments.making(config, 0.2)] == [[0, 5, 6], [5, 6]]
    (teacher / "generation_config.json").unlink()
    assert [list(one.spec.never) for one in deployments.making(config, 0.2)] == both


def test_processes_load_what_their_roles_say(tmp_path: Path) -> None:
    """The student that writes is another one than those that judge; a teacher that judges has no mask."""
    config = configuration.load(DEMO, ["evaluation.marked_by=judge", "judge.of_teacher=teacher"])
    names = {"teacher": "teacher", "teacher_judge": "teacher", "student": tmp_path.name, "reference": "student"}
    for made in (deployments.making(config, 0.1, tmp_path), deployments.measuring(config, tmp_path)):
        for one in made:
            assert Path(one.spec.checkpoint).name == (names | {"judge": "student"})[one.spec.roles[0]]
            assert (one.spec.mask is not None) == (one.spec.roles == ("teacher",))


ONLINE = ["rollout.online_fraction=1"]
ONE_GPU = ["learner.gpus=1", "student.gpus=1"]
ON_ONE_GPU = Turns(cpus=8.0, gpus=1)


@pytest.mark.parametrize(
    ("words", "beside"),
    [
        ([], "object_store"),
        (ONE_GPU, "nccl"),
        ([*ONE_GPU, "student.replicas=2"], "nccl"),
        (["learner.gpus=1", "student.gpus=0.25"], "object_store"),
        (["learner.gpus=1"], "object_store"),
        ([*ONE_GPU, "rollout.weight_transfer=object_store"], "object_store"),
    ],
)
def test_weights_go_from_gpu_to_gpu_where_both_sides_have_one_of_their_own(words: list[str], beside: str) -> None:
    config = configuration.load(DEMO, [*ONLINE, *words])
    assert [transfer(config, turns) for turns in (None, ON_ONE_GPU)] == [beside, "object_store"]


def test_weights_do_not_go_a_way_that_there_is_not() -> None:
    config = configuration.load(DEMO, [*ONLINE, *ONE_GPU, "rollout.weight_transfer=nccl"])
    assert transfer(config, None) == "nccl"
    with pytest.raises(ConfigError, match="found nccl, and they take turns .*auto takes what fits"):
        transfer(config, ON_ONE_GPU)
    offline = configuration.load(DEMO, ["rollout.weight_transfer=nccl"])
    assert transfer(offline, None) == "object_store", "it means nothing then"
