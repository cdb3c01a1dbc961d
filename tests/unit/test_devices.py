from __future__ import annotations

import dataclasses
import os
from types import SimpleNamespace
from typing import Any

import pytest

from masters_ray.config import Engine
from masters_ray.errors import ConfigError
from masters_ray.replicas import spawn
from masters_ray.replicas.actor import ReplicaSpec, Role
from masters_ray.replicas.devices import DEVICES, assigned, in_turns, show_own_devices
from masters_ray.replicas.spawn import Deployment, Replicas, environment


def kind(replicas: int, gpus: float, tensor_parallel: int = 1, role: Role = "teacher", cpus: float = 3.0) -> Deployment:
    spec = ReplicaSpec(checkpoint="none", roles=(role,), engine=Engine(), tensor_parallel=tensor_parallel)
    return Deployment(spec=spec, replicas=replicas, cpus=cpus, gpus=gpus)


@pytest.mark.parametrize(
    ("kinds", "gpus", "expected"),
    [
        pytest.param([kind(2, 0)], 0, [("", "")], id="no GPU"),
        pytest.param([kind(1, 0.5), kind(1, 0.25), kind(1, 0.25)], 1, [("0",), ("0",), ("0",)], id="all share one"),
        pytest.param([kind(4, 1)], 4, [("0", "1", "2", "3")], id="each has its own"),
        pytest.param([kind(1, 1), kind(1, 1), kind(1, 1)], 4, [("0",), ("1",), ("2",)], id="kinds beside each other"),
        pytest.param([kind(2, 0.5), kind(1, 1, 2)], 4, [("2", "3"), ("0,1",)], id="ranks are neighbours"),
        pytest.param([kind(1, 1, 2), kind(1, 1, 3)], 5, [("3,4",), ("0,1,2",)], id="wide ones first"),
        pytest.param([kind(2, 0.4), kind(2, 0.6)], 2, [("0", "1"), ("0", "1")], id="large shares first"),
        pytest.param([kind(3, 1)], 2, [("0", "1", "0")], id="round about when there are too many"),
        pytest.param([kind(1, 0.5, 2)], 2, [("0,1",)], id="half of two GPUs"),
    ],
)
def test_replicas_are_spread_over_the_gpus(kinds: list[Deployment], gpus: int, expected: list[tuple[str, ...]]) -> None:
    assert assigned(kinds, gpus) == expected


def test_a_replica_wider_than_the_node_is_refused() -> None:
    with pytest.raises(ValueError, match="a replica of teacher needs 4 GPUs, the node has 2"):
        assigned([kind(1, 1, 4)], 2)


def test_engines_on_gpus_sleep_and_threads_are_as_many_as_ever() -> None:
    on_gpu, on_cpu = in_turns([kind(1, 1), kind(1, 0, role="student")], 1)
    assert (on_gpu.devices, on_gpu.spec.sleeps) == (("0",), True)
    assert (on_cpu.devices, on_cpu.spec.sleeps) == (("",), False)
    assert environment(on_cpu)["OMP_NUM_THREADS"] == "3"
    assert in_turns([kind(2, 0)], 0)[0].devices == ("", ""), "on a node without a GPU"


def memory(deployments: list[Deployment]) -> list[float]:
    return [round(one.spec.utilization, 3) for one in deployments]


def test_engines_that_take_turns_with_the_learner_leave_it_a_part_of_their_gpu() -> None:
    shares = [kind(1, 0.5), kind(1, 0.25, role="student"), kind(1, 0.25, role="reference")]
    assert memory(in_turns(shares, 1)) == [0.3, 0.15, 0.15]
    whole = [kind(1, 1), kind(1, 1, role="student"), kind(1, 1, role="reference")]
    assert memory(in_turns(whole, 1)) == [0.2, 0.2, 0.2]
    assert memory(in_turns(whole, 4)) == [0.6, 0.6, 0.6]


def test_engines_that_are_told_to_take_more_than_their_gpu_has_are_refused() -> None:
    def told(taken: float) -> list[Deployment]:
        return [
            dataclasses.replace(one, spec=dataclasses.replace(one.spec, engine=Engine(gpu_memory_utilization=taken)))
            for one in (kind(1, 1), kind(1, 1, role="student"))
        ]

    assert memory(in_turns(told(0.5), 1)) == [0.5, 0.5]
    assert memory(in_turns(told(0.9), 2)) == [0.9, 0.9]
    with pytest.raises(ConfigError, match=r"found 1.80 on GPU 0"):
        in_turns(told(0.9), 1)


class Spawned:
    """In place of Ray: what was asked of it for each actor."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.ready = SimpleNamespace(remote=lambda: None)

    def options(self, **options: Any) -> Any:
        self.asked.append(options)
        return SimpleNamespace(remote=lambda spec: self)


@pytest.mark.parametrize(("turns", "reserved"), [(False, [(3.0, 2.0)] * 2), (True, [(0, 0)] * 2)])
def test_replicas_that_take_turns_reserve_nothing_and_are_told_their_gpus(
    turns: bool, reserved: list[tuple[float, float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = Spawned()
    stand_in = SimpleNamespace(
        remote=lambda host: ray,
        get=lambda _: None,
        wait=lambda waiting: ([waiting[0]], waiting[1:]),
        kill=lambda _: None,
    )
    monkeypatch.setattr(spawn, "ray", stand_in)
    wanted = [kind(2, 1, 2)]
    Replicas(in_turns(wanted, 4) if turns else wanted).close()
    assert [(one["num_cpus"], one["num_gpus"]) for one in ray.asked] == reserved
    told = [one["runtime_env"]["env_vars"].get(DEVICES) for one in ray.asked]
    assert told == (["0,1", "2,3"] if turns else [None, None])


@pytest.mark.parametrize(
    ("own", "shown", "seen"),
    [
        pytest.param("1,2", None, "1,2", id="all are shown"),
        pytest.param("1,2", "4,5,6", "5,6", id="the cluster was given some of the machine's"),
        pytest.param("0", "GPU-a,GPU-b", "GPU-a", id="by other names"),
        pytest.param("", "4,5", "4,5", id="none is assigned"),
    ],
)
def test_a_process_sees_its_own_gpus_of_those_of_the_cluster(
    own: str, shown: str | None, seen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(DEVICES, own)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if shown is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", shown)
    show_own_devices()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == seen
