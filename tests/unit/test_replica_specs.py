"""What the processes of replicas load, which GPUs they use, and how they are spawned."""

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import pytest

from masters_ray import config as configuration
from masters_ray.config import Engine
from masters_ray.errors import ConfigError, ReplicaError
from masters_ray.replicas import processes, spawn
from masters_ray.replicas.actor import ReplicaActor, show_devices
from masters_ray.replicas.spawn import Replicas, environment
from masters_ray.replicas.spec import ReplicaSpec, in_turns, specs
from tests.builders import replica_spec
from tests.conftest import PAIR, ROOT


def made(*words: str, student: Path | None = None) -> list[ReplicaSpec]:
    """For making rollouts with the demo's models."""
    config = configuration.load(ROOT / "conf" / "demo.yaml", list(words))
    return specs(config, processes.for_rollouts(config, learned=student is not None), 0.2, student)


def test_an_engine_on_a_cpu_has_a_cache_of_one_gibibyte_when_conf_says_nothing() -> None:
    def caches(*words: str) -> list[int | None]:
        keys = [f"{model}.engine.kv_cache_memory_bytes=null" for model in ("teacher", "student")]
        return [one.engine.kv_cache_memory_bytes for one in made(*keys, *words)]

    assert caches() == [2**30, 2**30]
    assert caches("teacher.gpus=1", "student.gpus=1") == [None, None]
    assert caches("student.engine.gpu_memory_utilization=0.3") == [2**30, None]


def test_no_model_writes_a_placeholder_and_no_teacher_an_end_that_the_student_has_not(tmp_path: Path) -> None:
    teacher = shutil.copytree(PAIR / "teacher", tmp_path / "teacher")
    settings = json.loads((teacher / "generation_config.json").read_text())
    (teacher / "generation_config.json").write_text(json.dumps(settings | {"eos_token_id": [2, 0]}))
    both, word = [(5, 6), (5, 6)], f"teacher.checkpoint={teacher}"
    assert [one.never for one in made()] == both
    assert [one.never for one in made(word)] == [(0, 5, 6), (5, 6)]
    (teacher / "generation_config.json").unlink()
    assert [one.never for one in made(word)] == both


def test_processes_load_what_their_roles_say(tmp_path: Path) -> None:
    """The student that writes is another one than those that judge; a teacher that judges has no mask."""
    names = {"teacher": "teacher", "teacher_judge": "teacher", "student": tmp_path.name, "reference": "student"}
    found = made("evaluation.marked_by=judge", "judge.of_teacher=teacher", student=tmp_path)
    assert {one.roles[0]: Path(one.checkpoint).name for one in found} == names
    assert [one.roles for one in found if one.masked is not None] == [("teacher",)]


def kind(count: int, gpus: float, tensor_parallel: int = 1, told: float | None = None) -> ReplicaSpec:
    engine, width = Engine(gpu_memory_utilization=told), tensor_parallel
    return replica_spec("teacher", count=count, cpus=3.0, gpus=gpus * width, tensor_parallel=width, engine=engine)


@pytest.mark.parametrize(
    ("kinds", "gpus", "expected"),
    [
        pytest.param([kind(2, 0)], 0, [("", "")], id="no GPU"),
        pytest.param([kind(1, 0.5), kind(1, 0.25), kind(1, 0.25)], 1, [("0",), ("0",), ("0",)], id="all share one"),
        pytest.param([kind(2, 0.5), kind(1, 1, 2)], 4, [("2", "3"), ("0,1",)], id="ranks are neighbours"),
        pytest.param([kind(1, 1, 2), kind(1, 1, 3)], 5, [("3,4",), ("0,1,2",)], id="wide ones first"),
        pytest.param([kind(2, 0.4), kind(2, 0.6)], 2, [("0", "1"), ("0", "1")], id="large shares first"),
        pytest.param([kind(3, 1)], 2, [("0", "1", "0")], id="round about when there are too many"),
        pytest.param([kind(1, 0.5, 2)], 2, [("0,1",)], id="half of two GPUs"),
    ],
)
def test_replicas_are_spread_over_the_gpus(kinds: list[ReplicaSpec], gpus: int, expected: list[tuple[str]]) -> None:
    assert [one.devices for one in in_turns(kinds, gpus)] == expected


def test_engines_on_gpus_sleep_and_threads_are_as_many_as_ever() -> None:
    on_gpu, on_cpu = in_turns([kind(1, 1), kind(1, 0)], 1)
    assert (on_gpu.sleeps, on_cpu.sleeps, kind(1, 1).sleeps) == (True, False, False)
    assert environment(on_cpu)["OMP_NUM_THREADS"] == "3"


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
    """A replica without an engine, whose loading is noted."""

    loads: list[float]

    def _load(self, spec: ReplicaSpec) -> None:
        self.loads.append(spec.ratio)
        if len(self.loads) > 1:
            raise RuntimeError("no room in memory")


def test_a_process_loads_its_model_once_with_the_mask_that_its_first_call_asks_for() -> None:
    teacher = replica_spec("teacher", masked=("language",), ratio=0.2)
    Loaded.loads = []
    again = Loaded(teacher)
    again.sleep()
    assert Loaded.loads == [], "a process that took the place of one asleep leaves the memory to the learner"
    again.ready(0.1)
    again.ready(0.0)
    failing = Loaded(teacher)
    for _ in range(2):
        with pytest.raises(ReplicaError, match="RuntimeError: no room in memory"):
            failing.ready()
    assert Loaded.loads == [0.1, 0.2]


class Spawned:
    """In place of Ray: what was asked of it for each actor."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.devices: list[Any] = []
        self.ready = SimpleNamespace(options=lambda **_: SimpleNamespace(remote=lambda: None))

    def options(self, **options: Any) -> Self:
        self.asked.append(options)
        return self

    def remote(self, spec: ReplicaSpec) -> Self:
        self.devices.append(spec.devices)
        return self


@pytest.mark.parametrize(("turns", "reserved"), [(False, [(3.0, 2.0)] * 2), (True, [(0, 0)] * 2)])
def test_replicas_that_take_turns_reserve_nothing_and_are_told_their_gpus(
    turns: bool, reserved: list[tuple[float, float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    spawned, nothing = Spawned(), lambda _: None
    ray = {"remote": lambda host: spawned, "wait": lambda waiting: ([waiting[0]], waiting[1:])}
    monkeypatch.setattr(spawn, "ray", SimpleNamespace(get=nothing, kill=nothing, **ray))
    wanted = [kind(2, 1, 2)]
    Replicas(in_turns(wanted, 4) if turns else wanted).close()
    assert [(one["num_cpus"], one["num_gpus"]) for one in spawned.asked] == reserved
    assert spawned.devices == ([("0,1",), ("2,3",)] if turns else [None, None])


@pytest.mark.parametrize(
    ("own", "shown", "seen"),
    [
        pytest.param("1,2", None, "1,2", id="all are shown"),
        pytest.param("1,2", "4,5,6", "5,6", id="the cluster was given some of the machine's"),
        pytest.param("", "4,5", "4,5", id="none is assigned"),
    ],
)
def test_a_process_sees_its_own_gpus_of_those_of_the_cluster(
    own: str, shown: str | None, seen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", shown or "")
    show_devices(own)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == seen
