"""Online iterations on a machine that does not hold learner and replicas beside each other."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import ray

from masters_ray import checks, cluster
from masters_ray.config import Cluster
from masters_ray.errors import ConfigError
from masters_ray.files import append_lines, read_lines
from masters_ray.pipeline import context, learning
from masters_ray.pipeline import run as pipeline
from masters_ray.pipeline.run_dir import RunDirectory
from masters_ray.replicas.actor import ReplicaActor
from masters_ray.replicas.placement import Turns
from masters_ray.replicas.spawn import Replicas
from masters_ray.weight_sync.broker import Order, RolloutBroker
from tests.conftest import ROOT
from tests.e2e.runs import SMALL, long_form, summary

pytestmark = pytest.mark.e2e
Spans = list[tuple[float, float]]
"""Begin and end, of the machine's monotonic clock."""


class Watched:
    """Notes when calls are under way, in a file per process that makes them."""

    def note(self, what: str, began: float) -> None:
        append_lines(Path(self.file), [{"what": what, "began": began, "ended": time.monotonic()}])

    file: str


class WatchedActor(ReplicaActor, Watched):
    def _guarded(self, action: Callable[[], Any], ratio: float | None = None) -> Any:
        began = time.monotonic()
        try:
            return super()._guarded(action, ratio)
        finally:
            self.note("asked", began)


class WatchedBroker(RolloutBroker, Watched):
    def begin(self, learned: int | None, students: Mapping[int, str]) -> None:
        if learned is None:
            self.note("clear", time.monotonic())
        super().begin(learned, students)

    def take(self, iteration: int) -> pa.Table | None:
        began = time.monotonic()
        try:
            return super().take(iteration)
        finally:
            self.note(f"waited {iteration}", began)

    def deliver(self, order: Order, groups: pa.Table | None) -> None:
        self.note(f"back {order.iteration}", time.monotonic())
        super().deliver(order, groups)


def spans(file: Path, what: str) -> Spans:
    return [(row["began"], row["ended"]) for row in read_lines(file) if row["what"].startswith(what)]


@pytest.fixture(scope="module")
def _two_cpus() -> Iterator[None]:
    with cluster.connected(Cluster(local_cpus=2)):
        yield


@long_form
@pytest.mark.usefixtures("_two_cpus")
def test_learner_and_rollouts_take_turns_where_both_do_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three processes of half a CPU make rollouts; the learner has one, and reading its data takes a whole CPU."""
    monkeypatch.chdir(ROOT)
    asked, waited = tmp_path / "asked.jsonl", tmp_path / "waited.jsonl"
    actor_class = type("ReplicaActor", (WatchedActor,), {"file": str(asked)})
    monkeypatch.setattr(context, "Replicas", partial(Replicas, actor_class=actor_class))

    @contextmanager
    def broker_of(job: Any, max_wait_seconds: float, replicas: int) -> Iterator[Any]:
        assert job.turns
        watched = type("RolloutBroker", (WatchedBroker,), {"file": str(waited)})
        actor = ray.remote(watched).options(num_cpus=0, max_concurrency=9 + replicas)
        yield actor.remote(job.online, job.max_staleness, max_wait_seconds, job.settings.workers)

    monkeypatch.setattr(learning, "broker_of", broker_of)
    words = [*SMALL, "data.train.rows=24", "data.held_out.rows=6", "learner.groups_per_step=4"]
    words += ["rollout.online_fraction=0.5", "rollout.max_staleness=1", "schedule.max_ratio=0"]
    words += [f"run.dir={tmp_path / 'run'}"]
    with pytest.raises(ConfigError, match="for learning while making rollouts"):
        cluster.place(checks.load("conf/demo.yaml", [*words, "rollout.placement=beside"]))
    settings = checks.load("conf/demo.yaml", words)
    turns = cluster.place(settings)
    assert turns == Turns(cpus=2.0, gpus=0)
    pipeline.run(settings, RunDirectory(settings), "conf/demo.yaml", turns)

    steps = read_lines(tmp_path / "run" / "metrics.jsonl")
    online = [1, 3, 5]
    assert [(step["step"], step["fresh"]) for step in steps] == [(n, 4 if n in online else 0) for n in range(1, 7)]
    assert [step["age"] for step in steps if step["fresh"]] == [0.0, 1.0, 1.0], "as without turns"
    assert summary(tmp_path / "run")["online"]["placement"] == "turns"

    waits = [spans(waited, f"waited {n}")[0] for n in online]
    backs = [spans(waited, f"back {n}")[0] for n in online]
    work = spans(asked, "asked")
    [(cleared, _)] = spans(waited, "clear")
    assert [one for one in work if one[1] < cleared], "rollouts of offline iterations, and accuracies"
    learns_from = [cleared, *(ended for _, ended in waits)]
    for since, (began, ended), (back, _) in zip(learns_from, waits, backs, strict=False):
        there = [one for one in work if since < one[1] and one[0] < ended]
        assert there and all(began < one[0] and one[1] < back < ended for one in there), "while the learner waits"
    measured = (tmp_path / "run" / "student" / "config.json").stat().st_mtime - time.time() + time.monotonic()
    assert all(measured < one[0] for one in work if waits[-1][1] < one[0]), "the trained student, when it is there"
