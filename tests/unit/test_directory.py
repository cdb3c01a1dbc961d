import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from masters_ray import config as configuration
from masters_ray.config import Config
from masters_ray.errors import ConfigError, StoreError
from masters_ray.files import read_lines, read_record, write_json
from masters_ray.learner.job import GroupRewards, Report, StepReport, TakenStep
from masters_ray.pipeline.journal import Journal
from masters_ray.pipeline.run_dir import RunDirectory
from masters_ray.records import LeftOut, LogprobMismatch, Rejected, SkippedStep
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
    claimed = read_record(tmp_path / "settings.json", dict)
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
    first, second = RunDirectory(config(tmp_path)), RunDirectory(config(tmp_path))
    told = r"another process works here \(process \d+ on "
    for _ in range(2):
        with first.locked(), pytest.raises(StoreError, match=told), second.locked():
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


FILES = ("metrics.jsonl", "skipped.jsonl", "rewards.jsonl", "left_out.jsonl")


def rewards(step: int, spread: float = 0.5) -> list[GroupRewards]:
    """Of the two groups of a step that are shown."""
    return [
        GroupRewards(stage=0, position=place, divergences=[0.1], distillation=[1.0], advantages=[spread])
        for place in (2 * step, 2 * step + 1)
    ]


def news(*steps: int, skipped: int | None = None) -> list[StepReport]:
    found: list[StepReport] = [TakenStep(metrics=metrics(step), rewards=rewards(step)) for step in steps]
    if skipped:
        found.append(LeftOut(step=skipped, rows=[unread(skipped)]))
        found.append(SkippedStep(step=skipped, stage=0, reason="no question of it has a row"))
    return found


def unread(step: int) -> Rejected:
    return Rejected(row=f"p{step}", reason="its picture is gone", kind="learner")


def told(directory: RunDirectory, *all_news: Report) -> None:
    with Journal(directory, "demo.yaml") as journal:
        for one in all_news:
            journal.take(one, lambda *_, **__: None)


def content(directory: RunDirectory) -> list[list[dict[str, object]]]:
    return [read_lines(directory.file(name)) for name in FILES]


@pytest.mark.parametrize("name", FILES)
def test_steps_skips_and_rewards_are_recorded_once_wherever_a_kill_cut_their_files(name: str, tmp_path: Path) -> None:
    """The worker group tells what it did before its last checkpoint and takes the steps after it again."""
    directory = RunDirectory(config(tmp_path))
    whole = [*news(1, skipped=2), *news(3), *news(4, skipped=5)]
    told(directory, *whole)
    expected, file = content(directory), directory.file(name)
    assert [[row["step"] for row in rows] for rows in expected] == [[1, 3, 4], [2, 5], [1, 1, 3, 3, 4, 4], [2, 5]]
    lines = file.read_bytes()
    ends = [index + 1 for index, byte in enumerate(lines) if byte == ord("\n")]
    for cut in {0, *ends, *(end - 7 for end in ends)}:
        file.write_bytes(lines[:cut])
        checkpoint = json.dumps([dataclasses.asdict(one) for one in news(1, 3, skipped=2)])
        told(directory, *TypeAdapter(list[StepReport]).validate_json(checkpoint), *news(4, skipped=5))
        assert content(directory) == expected, f"cut after {cut} bytes"
        told(directory, *whole)
        assert content(directory) == expected


def test_a_step_is_taken_or_skipped_whichever_came_last_and_has_its_new_rewards_alone(tmp_path: Path) -> None:
    """After a kill fresh answers that did not come in time may be there, and others may not."""
    directory = RunDirectory(config(tmp_path))
    told(directory, *news(1, 3, skipped=2))
    told(directory, *news(2), *news(skipped=3), TakenStep(metrics=metrics(1, loss=2.0), rewards=rewards(1, spread=0.7)))
    taken, skipped, rewarded, _ = content(directory)
    assert [(row["step"], row["loss"]) for row in taken] == [(1, 2.0), (2, 0.0)]
    assert [row["step"] for row in skipped] == [3]
    assert [(row["step"], row["advantages"]) for row in rewarded] == [(1, [0.7])] * 2 + [(2, [0.5])] * 2
    assert Journal(directory, "demo.yaml").steps_done() == 3


def test_rows_that_were_left_out_and_how_far_the_engine_is_are_known_to_a_later_call(tmp_path: Path) -> None:
    directory = RunDirectory(config(tmp_path))
    first, again = (
        LogprobMismatch(stage=stage, rows=64, row="p1", mean_gap=gap, token_gap=0.5, bound=0.1, apart=0)
        for stage, gap in ((0, 0.02), (1, 0.03))
    )
    told(directory, *news(1, skipped=2), first, again, again)
    with Journal(directory, "demo.yaml") as journal:
        assert journal.left_out() == [unread(2)]
        assert [journal.content["agreement"][stage]["mean_gap"] for stage in ("0", "1")] == [0.02, 0.03]
