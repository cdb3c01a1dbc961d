import json
import time
from pathlib import Path
from typing import Any

import pytest

from masters_ray import config as configuration
from masters_ray.config import Config
from masters_ray.errors import ConfigError, StoreError
from masters_ray.files import read_json, read_lines, write_json
from masters_ray.pipeline.journal import Journal
from masters_ray.pipeline.run_dir import RunDirectory
from masters_ray.records import SkippedStep
from tests.builders import step as metrics
from tests.conftest import ROOT


def config(root: Path, *overrides: str) -> Config:
    return configuration.load(ROOT / "conf" / "demo.yaml", [f"run.dir={root}", *overrides])


def test_a_claimed_directory_refuses_other_settings_and_names_every_key(tmp_path: Path) -> None:
    RunDirectory(config(tmp_path, "run.seed=3")).claim()
    for free in ("teacher.replicas=3", "judge.replicas=2", "cluster.local_cpus=8", "rollout.placement=turns"):
        RunDirectory(config(tmp_path, "run.seed=3", free))
    with pytest.raises(ConfigError) as caught:
        RunDirectory(config(tmp_path, "run.seed=7", "teacher.top_k=9"))
    assert [complaint.where for complaint in caught.value.complaints] == ["run.seed", "teacher.top_k"]
    RunDirectory(config(tmp_path / "unclaimed"))
    RunDirectory(config(tmp_path / "unclaimed", "run.seed=7"))


def test_a_key_that_came_after_the_run_was_begun_counts_as_its_default(tmp_path: Path) -> None:
    directory = RunDirectory(config(tmp_path))
    directory.claim()
    claimed = read_json(tmp_path / "settings.json")
    del claimed["judge.reasoning"]
    write_json(tmp_path / "settings.json", claimed)
    RunDirectory(config(tmp_path))
    with pytest.raises(ConfigError, match="judge.reasoning: expected False"):
        RunDirectory(config(tmp_path, "judge.reasoning=true"))


def test_how_to_learn_may_change_until_a_step_was_taken(tmp_path: Path) -> None:
    RunDirectory(config(tmp_path)).claim()
    directory = RunDirectory(config(tmp_path, "learner.learning_rate=1e-5", "reward.alpha=0.5"))
    directory.claim()
    with Journal(directory, "demo.yaml") as journal:
        journal.record(metrics(1))
    with pytest.raises(ConfigError, match=r"learner.zero_stage: .* to learn anew from this run's rollouts"):
        RunDirectory(config(tmp_path, "learner.learning_rate=1e-5", "reward.alpha=0.5", "learner.zero_stage=3"))


def test_a_run_with_relative_paths_goes_on_as_a_job_with_whole_ones(tmp_path: Path) -> None:
    grown: list[dict[str, Any]] = [{"teacher": {"checkpoint": "models/larger"}, "schedule": {"max_ratio": 0.2}}]
    RunDirectory(config(tmp_path, "data.train.path=./rows.jsonl", f"growth={json.dumps(grown)}")).claim()
    grown[0]["teacher"]["checkpoint"] = "/home/me/models/larger"
    RunDirectory(config(tmp_path, "data.train.path=/home/me/rows.jsonl", f"growth={json.dumps(grown)}"))
    for other in ("other.jsonl", "/home/me/other.jsonl", "/home/me/more_rows.jsonl", "data/rows.jsonl"):
        with pytest.raises(ConfigError, match=r"data.train.path: expected './rows.jsonl'"):
            RunDirectory(config(tmp_path, f"data.train.path={other}", f"growth={json.dumps(grown)}"))


def test_two_processes_cannot_work_in_one_directory(tmp_path: Path) -> None:
    with (
        RunDirectory(config(tmp_path)).locked(),
        pytest.raises(StoreError, match=r"another process works here \(process \d+ on "),
        RunDirectory(config(tmp_path)).locked(),
    ):
        pass
    with RunDirectory(config(tmp_path)).locked():
        pass


def test_the_journal_adds_up_over_calls(tmp_path: Path) -> None:
    directory = RunDirectory(config(tmp_path))
    killed = Journal(directory, "c.yaml")  # never closed
    with killed.phase("rollouts"):
        time.sleep(0.02)
    with Journal(directory, "c.yaml") as journal:
        assert journal.content["wall_seconds"] >= journal.content["phases"]["rollouts"] > 0.01
    first = journal.content["wall_seconds"]
    with Journal(directory, "c.yaml"):
        pass
    assert Journal(directory, "c.yaml").content["wall_seconds"] > first


def test_a_step_is_taken_or_skipped_whichever_came_last(tmp_path: Path) -> None:
    """After a kill fresh answers that did not come in time may be there, and others may not."""
    directory = RunDirectory(config(tmp_path))
    late = [SkippedStep(step=step, stage=0, reason="no question of it has a row", saved="") for step in (2, 3)]
    with Journal(directory, "demo.yaml") as journal:
        assert [journal.record(metrics(1)), journal.record(late[0]), journal.record(metrics(3))] == [1, 1, 1]
    with Journal(directory, "demo.yaml") as journal:
        assert [journal.record(metrics(2)), journal.record(late[1])] == [0, 0]
        assert journal.steps_done() == 3
    assert [row["step"] for row in read_lines(directory.file("metrics.jsonl"))] == [1, 2]
    assert [row["step"] for row in read_lines(directory.file("skipped.jsonl"))] == [3]
