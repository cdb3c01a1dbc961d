"""Replicas on a real Ray that die, come back, and join late; their models are stand-ins."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from masters_ray import cluster
from masters_ray.config import Cluster, Engine, MaskScope
from masters_ray.engines.vllm_engine import Mask
from masters_ray.errors import CheckpointError, ReplicaLostError
from masters_ray.masks import MaskReport
from masters_ray.replicas import spawn as replicas_module
from masters_ray.replicas.actor import ReplicaActor, ReplicaSpec, Role, mask_to_begin_with
from masters_ray.replicas.spawn import Deployment, Replicas
from tests.e2e.runs import long_form

pytestmark = pytest.mark.e2e


class Scripted:
    """Engine and player in one. A file die-at-METHOD-N in the checkpoint's directory costs one process its life."""

    def __init__(self, folder: Path, ratio: float) -> None:
        self._folder = folder
        self._digest = (folder / "weights").read_text()
        self._ratio = ratio
        self._changes = 0

    def changes(self) -> int:
        """How often its weights were masked again after they were loaded."""
        return self._changes

    def mask(self, ratio: float) -> MaskReport:
        self._die("mask")
        self._changes += ratio != self._ratio
        self._ratio = ratio
        return MaskReport(ratio=ratio, sparsity=ratio, matrices=1, digest=self._digest)

    def answer(self, thing: Any = None) -> tuple[int, float, Any]:
        self._die("answer")
        return os.getpid(), self._ratio, thing

    def _die(self, method: str) -> None:
        for file in self._folder.glob(f"die-at-{method}-*"):
            try:
                file.unlink()
            except FileNotFoundError:
                continue
            os._exit(1)


class TinyHost(ReplicaActor):
    """The first process of a directory starts at once; others when there is no file "hold", and not at all when there
    is one "broken"."""

    def __init__(self, spec: ReplicaSpec) -> None:
        folder = Path(spec.checkpoint)
        try:
            (folder / "first").touch(exist_ok=False)
        except FileExistsError:
            while (folder / "hold").exists():
                time.sleep(0.05)
            if (folder / "broken").exists():
                raise RuntimeError("no room in memory") from None
        mask = mask_to_begin_with(spec)
        scripted = Scripted(folder, mask.ratio if mask else 0.0)
        self._ending = threading.Event()
        self._model: Any = SimpleNamespace(engine=scripted)
        self._players = dict.fromkeys(spec.roles, scripted)


@pytest.fixture(scope="module", autouse=True)
def _three_cpus() -> Iterator[None]:
    with cluster.connected(Cluster(local_cpus=3)):
        yield


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(replicas_module, "say", lines.append)
    return lines


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "weights").write_text("same")
    return tmp_path


def deployment(folder: Path, *roles: Role, joining: int = 0) -> Deployment:
    mask = Mask(scope=MaskScope(), ratio=0.0) if "teacher" in roles else None
    spec = ReplicaSpec(checkpoint=str(folder), roles=roles, engine=Engine(), mask=mask)
    return Deployment(spec=spec, replicas=1, may_join=joining, cpus=1, gpus=0, max_restarts=10)


def deaths(folder: Path, method: str, count: int) -> None:
    for number in range(count):
        (folder / f"die-at-{method}-{number}").touch()


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline, "it did not come about in a minute"
        time.sleep(0.05)


def test_a_replica_that_dies_while_it_is_masked_or_asked_comes_back_masked(folder: Path) -> None:
    with Replicas([deployment(folder, "teacher")], TinyHost) as replicas:
        pool = replicas.pools["teacher"]
        deaths(folder, "mask", 2)
        [report] = pool.mask(0.2)
        assert report.ratio == 0.2
        first, _, _ = pool.call("answer")
        deaths(folder, "answer", 2)
        again, ratio, thing = pool.call_again("answer", pool.share("shared"))
        assert again != first
        assert (ratio, thing) == (0.2, "shared")
        assert pool.call("changes") == 0, "a process that takes another's place is masked while it loads"
        pool.mask(0.1)
        assert pool.call("changes") == 1
        deaths(folder, "answer", 1)
        with pytest.raises(ReplicaLostError, match="teacher.answer: its process died"):
            pool.call("answer")


@long_form
def test_a_process_that_comes_back_with_other_weights_is_refused(folder: Path) -> None:
    with Replicas([deployment(folder, "teacher")], TinyHost) as replicas:
        pool = replicas.pools["teacher"]
        pool.mask(0.2)
        (folder / "weights").write_text("changed")
        deaths(folder, "answer", 1)
        with pytest.raises(CheckpointError, match="holds other weights than the first ones"):
            pool.call_again("answer")


@long_form
def test_replicas_join_when_there_is_room_and_one_that_waits_for_room_is_stopped(folder: Path, said: list[str]) -> None:
    (folder / "hold").touch()
    with Replicas([deployment(folder, "student", "judge", joining=4)], TinyHost) as replicas:
        student, judge = replicas.pools["student"], replicas.pools["judge"]
        assert (student.calls_at_once, student.most_calls_at_once) == (3, 15)
        student.call("answer")
        (folder / "hold").unlink()
        until(lambda: judge.calls_at_once == student.calls_at_once == 9)
        assert judge.most_calls_at_once == 15
        assert said == ["an added replica of student and judge has joined"] * 2
        began = time.monotonic()
    assert time.monotonic() - began < 15
    assert len(said) == 2
    assert not any(thread.name.startswith("added replica") for thread in threading.enumerate())


@long_form
def test_a_replica_that_joins_a_masked_pool_is_masked_also_if_it_dies_on_the_way(folder: Path, said: list[str]) -> None:
    (folder / "hold").touch()
    with Replicas([deployment(folder, "teacher", joining=1)], TinyHost) as replicas:
        pool = replicas.pools["teacher"]
        pool.mask(0.2)
        deaths(folder, "mask", 1)
        (folder / "hold").unlink()
        until(lambda: pool.calls_at_once == 6)
        assert {pool.call("answer")[1] for _ in range(2)} == {0.2}
        assert len(pool.mask(0.1)) == 2


@long_form
@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [("weights", "changed", "holds other weights than the first ones"), ("broken", "", "no room in memory")],
)
def test_an_added_replica_that_cannot_work_is_left_out_and_the_others_go_on(
    file: str, content: str, reason: str, folder: Path, said: list[str]
) -> None:
    (folder / "hold").touch()
    with Replicas([deployment(folder, "teacher", joining=1)], TinyHost) as replicas:
        pool = replicas.pools["teacher"]
        pool.mask(0.2)
        (folder / file).write_text(content)
        (folder / "hold").unlink()
        until(lambda: pool.most_calls_at_once == 3)
        [told] = said
        assert "an added replica of teacher is left out, and the others go on" in told
        assert reason in told
        assert pool.call("answer")[1] == 0.2
