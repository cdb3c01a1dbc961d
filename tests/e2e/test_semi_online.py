"""Online iterations with real engines: the learner's weights reach the rollouts, whose answers it learns from."""

import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch

from masters_ray import checks, store
from masters_ray.config import Engine
from masters_ray.errors import WeightSyncError
from masters_ray.files import read_lines
from masters_ray.models import weights
from masters_ray.pipeline import learning
from masters_ray.pipeline import run as pipeline
from masters_ray.pipeline.run_dir import RunDirectory
from masters_ray.records import Problem
from masters_ray.replicas.actor import ReplicaActor
from masters_ray.replicas.spawn import Replicas
from masters_ray.weight_sync.broker import Order, RolloutBroker
from masters_ray.weight_sync.publisher import WeightPublisher, WeightSender
from masters_ray.weight_sync.student_weights import StudentWeights
from tests.builders import replica_spec
from tests.conftest import PAIR, ROOT
from tests.e2e.runs import SMALL, long_form, masters_ray, summary

pytestmark = pytest.mark.e2e
CLOSE = 1e-3
"""Nats; float32 on both sides."""
ONLINE = [
    *SMALL,
    *("data.train.rows=48", "data.held_out.rows=12", "learner.groups_per_step=4", "rollout.online_fraction=1"),
    "learner.tokens_per_micro_batch=4096",
]
"""Twelve iterations of four questions in three stages."""


def test_a_learner_that_changes_nothing_learns_from_fresh_answers_and_agrees_with_the_engine_after_every_sync(
    tmp_path: Path,
) -> None:
    words = ["learner.learning_rate=0", "rollout.max_staleness=0"]
    done = masters_ray("run", "conf/demo.yaml", f"run.dir={tmp_path}", *ONLINE, *words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "12 of its 12 iterations are online" in done.stdout
    assert not any(len(list(store.read(tmp_path / "rollouts" / f"stage-{stage}"))) for stage in range(3))
    groups = [one for stage in range(3) for one in store.read(tmp_path / "online" / f"stage-{stage}")]
    assert [(one.position, one.version) for one in groups] == [(place, place // 4) for place in range(48)]
    steps = read_lines(tmp_path / "metrics.jsonl")
    assert [(step["fresh"], step["age"]) for step in steps] == [(4, 0.0)] * 12
    assert max(step["logprob_mismatch"] for step in steps) <= CLOSE
    online = read_lines(tmp_path / "online.jsonl")
    assert [(one["step"], one["version"], one["ages"]) for one in online] == [(n, n - 1, [0] * 4) for n in range(1, 13)]
    assert summary(tmp_path)["placement"] == "beside"


class Damaging(RolloutBroker):
    """Changes one bit of what the learner hands out after its second iteration."""

    def put_piece(self, piece: bytes) -> list[Any]:
        self._kept = getattr(self, "_kept", 0) + 1
        if self._kept == 3:
            piece = piece[:-8] + bytes([piece[-8] ^ 1]) + piece[-7:]
        return super().put_piece(piece)


class DamagingSender(WeightSender):
    """Changes one bit of version 2 when its digests are known."""

    def retain(self, version: int, tensors: Mapping[str, torch.Tensor], oldest: int) -> None:
        if version == 2:
            *_, last = tensors
            bits = tensors[last].clone()
            bits.view(torch.uint8).view(-1)[7] ^= 1
            tensors = {**tensors, last: bits}
        super().retain(version, tensors, oldest)


class KillableActor(ReplicaActor):
    def pid(self) -> int:
        return os.getpid()


def moved(checkpoint: Path) -> dict[str, torch.Tensor]:
    """A checkpoint's tensors after a large step, by their names."""
    torch.manual_seed(0)
    return {
        name: (one.float() * (1 + 0.02 * torch.randn_like(one.float()))).contiguous()
        for name, one in weights.tensors(checkpoint)
    }


@pytest.mark.parametrize(
    ("asks_learner", "model", "ranks"),
    [
        (False, "student", 1),
        pytest.param(True, "student", 1, marks=long_form),
        # The toy student's vision has three heads, which two ranks cannot share.
        pytest.param(True, "teacher", 2, marks=long_form),
    ],
)
def test_a_replica_that_dies_comes_back_with_the_weights_of_the_others_and_takes_no_damaged_ones(
    local_ray: None, toy_engine: Engine, questions: list[Problem], asks_learner: bool, model: str, ranks: int
) -> None:
    """From the object store, or from a learner on the CPU that replicas ask, as they do over NCCL."""
    more = {"engine": toy_engine, "tensor_parallel": ranks, "max_restarts": 3}
    spec = replica_spec("student", checkpoint=str(PAIR / model), **more)
    answers = [[(40, 41, 2)] for _ in questions]
    broker = ray.remote(Damaging).options(num_cpus=0, max_concurrency=6).remote([1, 2, 3], 0, 10.0)
    tensors = moved(PAIR / model)
    sender = DamagingSender(broker, torch.device("cpu"), "gloo") if asks_learner else None
    calls: dict[str, Any] = {"gather": lambda: tensors, "barrier": lambda: None}
    publisher = WeightPublisher(broker, online=[1, 2, 3], max_staleness=0, rank=0, sender=sender, **calls)

    def published(version: int) -> StudentWeights:
        publisher.publish(version) if version else publisher.begin(0)
        order: Order = ray.get(broker.next_order.remote(1.0))
        ray.get(broker.deliver.remote(order, store.SCHEMA.empty_table()))
        return order.weights

    with Replicas([spec], KillableActor) as replicas:
        pool = replicas.pools["student"]

        def scored() -> np.ndarray:
            found: np.ndarray = pool.call_again("score", questions, answers).tokens.flatten().to_numpy()
            return found

        before = scored()
        pool.hold(published(0))
        after = scored()
        assert np.abs(after - before).max() > 0.1
        [process] = pool.everywhere("pid")
        os.kill(process, signal.SIGKILL)
        assert np.array_equal(scored(), after)
        pool.hold(published(1))
        with pytest.raises(WeightSyncError, match=f"version 2 .* 1 of {len(tensors)} tensors .* sent, .* received"):
            pool.hold(published(2))
    publisher.close()


def driven(folder: Path, monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    """A run whose driver is this process, of few iterations at mask ratio 0, strictly on-policy."""
    monkeypatch.chdir(ROOT)
    usual = ["data.train.rows=16", "schedule.max_ratio=0", "rollout.max_staleness=0", f"run.dir={folder}"]
    settings = checks.load("conf/demo.yaml", [*ONLINE, *usual, *words])
    pipeline.run(settings, RunDirectory(settings), "conf/demo.yaml")


@long_form
def test_a_learner_that_is_asked_for_its_weights_agrees_with_the_engine_that_has_them(
    local_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """gloo in place of nccl, which a configuration cannot say."""
    monkeypatch.setattr(learning.placement, "transfer", lambda *_: "gloo")
    driven(tmp_path, monkeypatch, "learner.learning_rate=0")
    assert "4 of its 4 iterations are online, weights by gloo" in capsys.readouterr().out
    assert [one["version"] for one in read_lines(tmp_path / "online.jsonl")] == list(range(4))
    assert max(step["logprob_mismatch"] for step in read_lines(tmp_path / "metrics.jsonl")) <= CLOSE


@long_form
def test_learner_and_rollouts_take_turns_where_both_do_not_fit(tmp_path: Path) -> None:
    """Three processes of half a CPU make rollouts; the learner has one, and reading its data takes a whole CPU."""
    words = ["cluster.local_cpus=2", "data.train.rows=24", "rollout.online_fraction=0.5", "schedule.max_ratio=0"]
    done = masters_ray("run", "conf/demo.yaml", f"run.dir={tmp_path}", *ONLINE, "rollout.max_staleness=1", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    steps = read_lines(tmp_path / "metrics.jsonl")
    assert [step["fresh"] for step in steps] == [4, 0, 4, 0, 4, 0]
    assert [step["age"] for step in steps if step["fresh"]] == [0.0, 1.0, 1.0], "as without turns"
    assert summary(tmp_path)["placement"] == "turns"
