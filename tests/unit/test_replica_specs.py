import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest

from masters_ray import config as configuration
from masters_ray.config import Engine
from masters_ray.errors import ConfigError, ReplicaError
from masters_ray.replicas import processes, spawn
from masters_ray.replicas.actor import ReplicaActor, show_devices
from masters_ray.replicas.processes import Processes
from masters_ray.replicas.spawn import Replicas, environment
from masters_ray.replicas.spec import ReplicaSpec, in_turns, specs
from tests.builders import checkpoint, replica_spec
from tests.conftest import DEMO


def loaded(words: str) -> configuration.Config:
    return configuration.load(DEMO, words.split())


def listed(found: Sequence[Processes]) -> str:
    """Example: ``teacher 1, student+judge 1``."""
    return ", ".join(f"{'+'.join(one.roles)} {one.count}" for one in found)


RULE_JUDGES = "judge.of_teacher=rule judge.of_student=rule"


STUDENTS = "student.replicas=2"


@pytest.mark.parametrize(
    ("words", "learned", "expected"),
    [
        ("teacher.replicas=2 judge.replicas=2", {}, "teacher 2, student+judge 1, judge 1"),
        ("student.replicas=3 judge.replicas=1", {}, "teacher 1, student+judge 1, student 2"),
        ("judge.share_process=false", {}, "teacher 1, student 1, judge 1"),
        (
            "judge.of_teacher=teacher judge.of_student=teacher judge.replicas=2",
            {},
            "teacher 1, teacher_judge 2, student 1",
        ),
        (RULE_JUDGES, {}, "teacher 1, student 1"),
        (STUDENTS, {"learned": True}, "teacher 1, student 2, reference+judge 1"),
        (STUDENTS, {"learned": True, "follows": True}, "teacher 1, student+judge 2, reference 1"),
        (RULE_JUDGES, {"learned": True}, "teacher 1, student 1, reference+judge 1"),
    ],
)
def test_student_and_judge_share_processes_until_the_student_has_learned_and_the_judge_does_not_follow(
    words: str, learned: dict[str, bool], expected: str
) -> None:
    assert listed(processes.for_rollouts(loaded(words), **({"learned": False} | learned))) == expected


@pytest.mark.parametrize(("who", "expected"), [("rule", "student 1"), ("judge", "student 1, judge 1")])
def test_the_trained_student_is_measured_beside_the_judge_unless_the_rule_marks(who: str, expected: str) -> None:
    assert listed(processes.for_measuring(loaded(f"evaluation.marked_by={who}"))) == expected


def made(words: str = "", student: Path | None = None) -> list[ReplicaSpec]:
    """For making rollouts with the demo's models."""
    config = loaded(words)
    return specs(config, processes.for_rollouts(config, learned=student is not None), 0.2, student)


@pytest.mark.parametrize("words", ["student.gpus=1", "student.engine.gpu_memory_utilization=0.3"])
def test_an_engine_on_a_cpu_has_a_cache_of_one_gibibyte_when_conf_says_nothing(words: str) -> None:
    keys = "teacher.engine.kv_cache_memory_bytes=null student.engine.kv_cache_memory_bytes=null"
    assert [one.engine.kv_cache_memory_bytes for one in made(f"{keys} {words}")] == [2**30, None]


def test_no_model_writes_a_placeholder_and_no_teacher_an_end_that_the_student_has_not(tmp_path: Path) -> None:
    teacher = checkpoint(tmp_path / "teacher", "teacher", weights=True, generation_config={"eos_token_id": [2, 0]})
    both, word = [(5, 6), (5, 6)], f"teacher.checkpoint={teacher}"
    assert [one.never for one in made()] == both
    assert [one.never for one in made(word)] == [(0, 5, 6), (5, 6)]
    (teacher / "generation_config.json").unlink()
    assert [one.never for one in made(word)] == both


def test_processes_load_what_their_roles_say(tmp_path: Path) -> None:
    """The student that writes is another one than those that judge; a teacher that judges has no mask. They reserve
    what all their ranks need."""
    names = {"teacher": "teacher", "teacher_judge": "teacher", "student": tmp_path.name, "reference": "student"}
    found = made("judge.of_teacher=teacher teacher.gpus=1 teacher.tensor_parallel=2", student=tmp_path)
    assert {one.roles[0]: Path(one.checkpoint).name for one in found} == names
    assert [(one.roles, one.gpus) for one in found if one.masked is not None] == [(("teacher",), 2)]


def kind(count: int, gpus: float, tensor_parallel: int = 1, told: float | None = None) -> ReplicaSpec:
    engine, width = Engine(gpu_memory_utilization=told), tensor_parallel
    return replica_spec("teacher", count=count, cpus=3.0, gpus=gpus * width, tensor_parallel=width, engine=engine)


@pytest.mark.parametrize(
    ("kinds", "gpus", "expected"),
    [
        pytest.param([kind(2, 0)], 0, [("", "")], id="no GPU"),
        pytest.param([kind(1, 0.5), kind(1, 0.25), kind(1, 0.25)], 1, [("0",), ("0",), ("0",)], id="all share one"),
        pytest.param([kind(2, 0.5), kind(1, 1, 2)], 4, [("0,1",), ("2", "3")], id="ranks are neighbours"),
        pytest.param([kind(1, 1, 2), kind(1, 1, 3)], 5, [("0,1,2",), ("3,4",)], id="wide ones first"),
        pytest.param([kind(2, 0.4), kind(2, 0.6)], 2, [("0", "1"), ("0", "1")], id="large shares first"),
        pytest.param([kind(3, 1)], 2, [("0", "1", "0")], id="round about when there are too many"),
        pytest.param([kind(1, 0.5, 2)], 2, [("0,1",)], id="half of two GPUs"),
    ],
)
def test_replicas_are_spread_over_the_gpus(kinds: list[ReplicaSpec], gpus: int, expected: list[tuple[str]]) -> None:
    assert [one.devices for one in in_turns(kinds, gpus)] == expected


def test_engines_on_gpus_sleep_and_those_on_cpus_have_a_thread_for_each_cpu() -> None:
    on_gpu, on_cpu = in_turns([kind(1, 1), kind(1, 0)], 1)
    assert (on_gpu.sleeps, on_cpu.sleeps, environment(on_cpu)["OMP_NUM_THREADS"]) == (True, False, "3")


@pytest.mark.parametrize(
    ("kinds", "gpus", "expected"),
    [
        ([kind(1, 0.5), kind(1, 0.25), kind(1, 0.25)], 1, [0.3, 0.15, 0.15]),
        ([kind(1, 1)] * 3, 1, [0.2] * 3),
        ([kind(1, 1, told=0.5)] * 2, 1, [0.5] * 2),
        ([kind(1, 1, told=0.9)] * 2, 2, [0.9] * 2),
    ],
)
def test_engines_that_take_turns_with_the_learner_leave_it_a_part_of_their_gpu(
    kinds: list[ReplicaSpec], gpus: int, expected: list[float]
) -> None:
    assert [one.engine.gpu_memory_utilization for one in in_turns(kinds, gpus)] == pytest.approx(expected)
    with pytest.raises(ConfigError, match=r"found 1.80 on GPU 0"):
        in_turns([kind(1, 1, told=0.9)] * 2, 1)


class Loaded(ReplicaActor):
    """A replica without an engine, whose loading is noted and fails."""

    loads: list[float]

    def _load(self, spec: ReplicaSpec) -> None:
        self.loads.append(spec.ratio)
        raise RuntimeError("no room in memory")


def test_a_process_loads_its_model_once_with_the_mask_that_its_first_call_asks_for() -> None:
    replica = Loaded(replica_spec("teacher", masked=("language",), ratio=0.2))
    replica.loads = []
    replica.sleep()
    assert replica.loads == [], "a process that took the place of one asleep leaves the memory to the learner"
    for _ in range(2):
        with pytest.raises(ReplicaError, match="RuntimeError: no room in memory"):
            replica.mask(0.1)
    assert replica.loads == [0.1]


@pytest.mark.parametrize(
    ("wanted", "asked"),
    [
        ([kind(2, 1, 2)], [(3.0, 2.0, None)] * 2),
        (in_turns([kind(2, 1, 2)], 4), [(0, 0, ("0,1",)), (0, 0, ("2,3",))]),
    ],
)
def test_replicas_that_take_turns_reserve_nothing_and_are_told_their_gpus(
    wanted: list[ReplicaSpec], asked: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """asked: CPUs, GPUs and devices of each actor."""
    monkeypatch.setattr(spawn, "ray", ray := MagicMock())
    ray.wait = lambda waiting: ([waiting[0]], waiting[1:])
    Replicas(wanted).close()
    reserved = [one.kwargs for one in ray.remote().options.call_args_list]
    told = [one.args[0] for one in ray.remote().options().remote.call_args_list]
    pairs = zip(reserved, told, strict=True)
    assert [(held["num_cpus"], held["num_gpus"], spec.devices) for held, spec in pairs] == asked


@pytest.mark.parametrize(("own", "shown", "seen"), [("1,2", "", "1,2"), ("1,2", "4,5,6", "5,6"), ("", "4,5", "4,5")])
def test_a_process_sees_its_own_gpus_of_those_of_the_cluster(
    own: str, shown: str, seen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", shown)
    show_devices(own)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == seen
