"""Replicas on a real Ray that die and come back; their models are stand-ins."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from masters_ray import cluster
from masters_ray.config import Cluster
from masters_ray.errors import CheckpointError, ReplicaError, ReplicaLostError
from masters_ray.method.masks import MaskReport
from masters_ray.replicas.actor import ReplicaActor
from masters_ray.replicas.processes import Role
from masters_ray.replicas.spawn import Replicas
from masters_ray.replicas.spec import ReplicaSpec
from tests.builders import replica_spec
from tests.e2e.runs import long_form

pytestmark = pytest.mark.e2e


class Scripted:
    """Model and engine in one. A file die-at-METHOD-N in the checkpoint's directory costs one process its life; a file
    break-at-METHOD-N its engine."""

    def __init__(self, folder: Path, ratio: float) -> None:
        self._folder = folder
        self._digest = (folder / "weights").read_text()
        self._ratio = ratio
        self.engine = self

    def mask(self, ratio: float) -> MaskReport:
        self._end("mask")
        self._ratio = ratio
        return MaskReport(ratio=ratio, sparsity=ratio, digest=self._digest)

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
    """Does not load its model while there is a file "broken"."""

    def _load(self, spec: ReplicaSpec) -> None:
        folder = Path(spec.checkpoint)
        if (folder / "broken").exists():
            raise RuntimeError("no room in memory")
        self._model: Any = Scripted(folder, spec.ratio)


@pytest.fixture(scope="module", autouse=True)
def _two_cpus() -> Iterator[None]:
    with cluster.connected(Cluster(local_cpus=2)):
        yield


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "weights").write_text("same")
    return tmp_path


def tiny(folder: Path, *roles: Role, max_restarts: int = 10) -> ReplicaSpec:
    return replica_spec(*roles, checkpoint=str(folder), cpus=1, max_restarts=max_restarts)


def ends(folder: Path, what: str, count: int) -> None:
    """what: die-at-METHOD or break-at-METHOD."""
    for number in range(count):
        (folder / f"{what}-{number}").touch()


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
        with pytest.raises(CheckpointError, match="holds other weights than before"):
            pool.call_again("answer")
