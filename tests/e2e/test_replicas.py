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
from masters_ray.config import Cluster
from masters_ray.errors import CheckpointError, ReplicaError, ReplicaLostError
from masters_ray.method.masks import MaskReport
from masters_ray.models.vllm_engine import Mask
from masters_ray.replicas import pool as pool_module
from masters_ray.replicas.actor import ReplicaActor, mask_to_begin_with
from masters_ray.replicas.processes import Role
from masters_ray.replicas.spawn import Replicas
from masters_ray.replicas.spec import ReplicaSpec
from tests.builders import replica_spec
from tests.e2e.runs import long_form

pytestmark = pytest.mark.e2e


class Scripted:
    """Engine and role in one. A file die-at-METHOD-N in the checkpoint's directory costs one process its life; a file
    break-at-METHOD-N its engine."""

    def __init__(self, folder: Path, ratio: float) -> None:
        self._folder = folder
        self._digest = (folder / "weights").read_text()
        self._ratio = ratio
        self._changes = 0

    def changes(self) -> int:
        """How often its weights were masked again after they were loaded."""
        return self._changes

    def mask(self, ratio: float) -> MaskReport:
        self._end("mask")
        self._changes += ratio != self._ratio
        self._ratio = ratio
        return MaskReport(ratio=ratio, sparsity=ratio, matrices=1, digest=self._digest)

    def answer(self, thing: Any = None) -> tuple[int, float, Any]:
        self._end("answer")
        return os.getpid(), self._ratio, thing

    def _end(self, method: str) -> None:
        for file in self._folder.glob(f"*-at-{method}-*"):
            try:
                file.unlink()
            except FileNotFoundError:
                continue
            if file.name.startswith("break"):
                raise ReplicaLostError("the engine broke")
            os._exit(1)


class TinyActor(ReplicaActor):
    """The first process of a directory starts at once; others when there is no file "hold", and not at all when there
    is one "broken"."""

    def _load(self, spec: ReplicaSpec) -> None:
        folder = Path(spec.checkpoint)
        try:
            (folder / "first").touch(exist_ok=False)
        except FileExistsError:
            while (folder / "hold").exists():
                time.sleep(0.05)
        if (folder / "broken").exists():
            raise RuntimeError("no room in memory")
        mask = mask_to_begin_with(spec)
        scripted = Scripted(folder, mask.ratio if mask else 0.0)
        self._model: Any = SimpleNamespace(engine=scripted)
        self._roles = dict.fromkeys(spec.roles, scripted)


@pytest.fixture(scope="module", autouse=True)
def _three_cpus() -> Iterator[None]:
    with cluster.connected(Cluster(local_cpus=3)):
        yield


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(pool_module, "say", lines.append)
    return lines


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "weights").write_text("same")
    return tmp_path


def tiny(folder: Path, *roles: Role, may_join: int = 0, max_restarts: int = 10) -> ReplicaSpec:
    mask = Mask(parts=["language"], ratio=0.0) if "teacher" in roles else None
    more = {"may_join": may_join, "max_restarts": max_restarts}
    return replica_spec(*roles, checkpoint=str(folder), cpus=1, mask=mask, **more)


def ends(folder: Path, what: str, count: int) -> None:
    """what: die-at-METHOD or break-at-METHOD."""
    for number in range(count):
        (folder / f"{what}-{number}").touch()


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline, "it did not come about in a minute"
        time.sleep(0.05)


def test_a_replica_that_dies_while_it_is_masked_or_asked_comes_back_masked(folder: Path) -> None:
    with Replicas([tiny(folder, "teacher")], TinyActor) as replicas:
        pool = replicas.pools["teacher"]
        ends(folder, "die-at-mask", 2)
        [report] = pool.mask(0.2)
        assert report.ratio == 0.2
        first, _, _ = pool.call("answer")
        ends(folder, "die-at-answer", 1)
        ends(folder, "break-at-answer", 1)
        again, ratio, thing = pool.call_again("answer", pool.share("shared"))
        assert again != first
        assert (ratio, thing) == (0.2, "shared")
        assert pool.call("changes") == 0, "a process that takes another's place is masked while it loads"
        ends(folder, "break-at-mask", 1)
        pool.mask(0.1)
        ends(folder, "die-at-answer", 1)
        with pytest.raises(ReplicaLostError, match="teacher.answer: its process died"):
            pool.call("answer")


def test_a_replica_that_cannot_start_or_dies_too_often_is_told_of(folder: Path) -> None:
    with Replicas([tiny(folder, "teacher", max_restarts=1)], TinyActor) as replicas:
        ends(folder, "die-at-mask", 2)
        with pytest.raises(ReplicaError, match="mask: no replica is left .*rollout.max_restarts.* process died"):
            replicas.pools["teacher"].mask(0.2)
    (folder / "broken").touch()
    with pytest.raises(ReplicaError, match="a replica of student and judge could not start: RuntimeError: no room in"):
        Replicas([tiny(folder, "student", "judge")], TinyActor)


@long_form
def test_a_process_that_comes_back_with_other_weights_is_refused(folder: Path) -> None:
    with Replicas([tiny(folder, "teacher")], TinyActor) as replicas:
        pool = replicas.pools["teacher"]
        pool.mask(0.2)
        (folder / "weights").write_text("changed")
        ends(folder, "die-at-answer", 1)
        with pytest.raises(CheckpointError, match="holds other weights than the first ones"):
            pool.call_again("answer")


@long_form
def test_replicas_join_when_there_is_room_and_one_that_waits_for_room_is_stopped(folder: Path, said: list[str]) -> None:
    (folder / "hold").touch()
    with Replicas([tiny(folder, "student", "judge", may_join=4)], TinyActor) as replicas:
        student = replicas.pools["student"]
        assert student.most_calls_at_once == 15
        student.call("answer")
        (folder / "hold").unlink()
        until(lambda: len(said) == 4)
        assert sorted(said) == ["judge: a replica has joined"] * 2 + ["student: a replica has joined"] * 2
        assert student.most_calls_at_once == 15
        began = time.monotonic()
    assert time.monotonic() - began < 15
    assert len(said) == 4
    assert not any(thread.name.endswith("joining") for thread in threading.enumerate())


@long_form
def test_a_replica_that_joins_a_masked_pool_is_masked_also_if_it_dies_on_the_way(folder: Path, said: list[str]) -> None:
    (folder / "hold").touch()
    with Replicas([tiny(folder, "teacher", may_join=1)], TinyActor) as replicas:
        pool = replicas.pools["teacher"]
        pool.mask(0.2)
        ends(folder, "die-at-mask", 1)
        (folder / "hold").unlink()
        until(lambda: said == ["teacher: a replica has joined"])
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
    with Replicas([tiny(folder, "teacher", may_join=1)], TinyActor) as replicas:
        pool = replicas.pools["teacher"]
        pool.mask(0.2)
        (folder / file).write_text(content)
        (folder / "hold").unlink()
        until(lambda: pool.most_calls_at_once == 3)
        [told] = said
        assert "teacher: a replica is left out, 1 are left: " in told and reason in told
        assert pool.call("answer")[1] == 0.2
