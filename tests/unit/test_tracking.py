"""Trackers, each with its own client and without a server."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from masters_ray import checks
from masters_ray.checks import places
from masters_ray.errors import ConfigError
from masters_ray.files import read_lines, read_record
from masters_ray.pipeline.journal import Journal
from masters_ray.pipeline.run_dir import RunDirectory
from tests import trackers
from tests.builders import step
from tests.conftest import DEMO, ROOT
from tests.unit.test_directory import config

ALL = "tracker=[tensorboard,wandb,mlflow,trackio]"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where trackers keep what they get; trackio reads its place only once in a process."""
    place = tmp_path_factory.mktemp("trackers")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in trackers.environment(place).items():
            patch.setenv(name, value)
        yield place


def journal(run: Path, tracker: str = ALL) -> Journal:
    return Journal(RunDirectory(config(run, tracker)), "demo.yaml")


def take(opened: Journal, *steps: int, seconds: float) -> None:
    for number in steps:
        opened.record(step(number, loss=number / 3, logprob_mismatch=float("nan"), seconds=seconds))


def stopped_call(run: Path) -> None:
    with journal(run) as opened:
        take(opened, 1, 2, 3, 4, seconds=7.0)
        opened.trackers.send({"accuracy/student": 0.5}, 2)  # measured after later steps
        raise KeyboardInterrupt


def killed_call(run: Path) -> None:
    """A call that takes steps 5 to 7 and is then killed without notice."""
    with journal(run) as opened:
        take(opened, 5, 6, 7, seconds=8.0)
        os.kill(os.getpid(), signal.SIGKILL)


def test_trackers_hold_each_number_once_though_the_run_was_killed_and_repeated_steps(folder: Path) -> None:
    run = folder / "run"
    with pytest.raises(KeyboardInterrupt):
        stopped_call(run)
    program = f"from pathlib import Path; from tests.unit import test_tracking as t; t.killed_call(Path({str(run)!r}))"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == -signal.SIGKILL
    with journal(run) as opened:
        take(opened, 6, 7, 8, 9, seconds=9.0)
    opened.finish()
    rows = read_lines(run / "metrics.jsonl")
    assert [(row["step"], row["seconds"]) for row in rows[4:]] == [(5, 8.0), (6, 8.0), (7, 8.0), (8, 9.0), (9, 9.0)]
    trackers.compare(run, folder, {("accuracy/student", 2): 0.5})


def test_a_tracker_that_fails_is_named_once_and_gets_what_it_lacks_from_the_next_call(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    run, client = tmp_path / "run", mlflow.MlflowClient
    with journal(run, "tracker=[mlflow]") as opened, monkeypatch.context() as patch:
        take(opened, 1, 2, seconds=1.0)
        patch.setattr(client, "log_batch", gone)
        take(opened, 3, 4, seconds=1.0)
    opened.finish()
    events = [event["text"] for event in read_lines(run / "events.jsonl") if event["kind"] == "warning"]
    assert events == [
        "mlflow gets nothing more from this call (ConnectionError: no server); metrics.jsonl has everything"
    ]
    id = read_record(run / "journal.json", dict)["trackers"]["mlflow"]["id"]
    with journal(run, "tracker=[mlflow]") as opened:
        take(opened, 5, seconds=1.0)
    opened.finish()
    held = trackers.mlflow(folder, id)
    assert sorted(step for name, step in held if name == "learner/loss") == [1, 2, 3, 4, 5]
    assert all(len(values) == 1 for values in held.values())
    assert client().get_run(id).info.status == "FINISHED"


def gone(*_: object, **__: object) -> None:
    raise ConnectionError("no server\nat all")


def test_a_tracker_named_later_gets_the_earlier_steps_and_none_leaves_no_trace(folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with journal(run, "tracker=[]") as opened:
        take(opened, 1, 2, seconds=1.0)
    opened.finish()
    assert {file.name for file in run.iterdir()} == {"metrics.jsonl", "events.jsonl", "journal.json"}
    with journal(run, "tracker=mlflow") as opened:
        take(opened, 3, seconds=1.0)
    opened.finish()
    held = trackers.mlflow(folder, read_record(run / "journal.json", dict)["trackers"]["mlflow"]["id"])
    assert sorted(step for name, step in held if name == "learner/loss") == [1, 2, 3]


def test_a_tracker_whose_package_is_not_installed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "find_spec", {"tensorboard": "it is here"}.get)
    words = [f"run.dir={tmp_path}", "tracker=[tensorboard,wandb,trackio]"]
    with pytest.raises(ConfigError, match=r"tracker: .*found \['wandb', 'trackio'\].*pip install wandb trackio"):
        checks.load(DEMO, words)
    with pytest.raises(ConfigError, match="tracker"):
        checks.load(DEMO, [f"run.dir={tmp_path}", "tracker=neptune"])
