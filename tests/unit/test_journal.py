"""What a run remembers of its steps, whenever it was killed."""

from __future__ import annotations

from pathlib import Path

import pytest

from masters_ray.files import read_lines
from masters_ray.learner.job import GroupRewards, LearnerReport
from masters_ray.pipeline.journal import Journal
from masters_ray.pipeline.run_dir import RunDirectory
from masters_ray.records import LeftOut, LogprobMismatch, Rejected, SkippedStep
from tests.builders import step as metrics
from tests.unit.test_directory import config

FILES = ("metrics.jsonl", "skipped.jsonl", "rewards.jsonl", "left_out.jsonl")


def rewards(step: int, spread: float = 0.5) -> list[GroupRewards]:
    """Of the two groups of a step that are shown."""
    return [
        GroupRewards(stage=0, position=place, divergences=[0.1], distillation=[1.0], advantages=[spread])
        for place in (2 * step, 2 * step + 1)
    ]


def news(*steps: int, skipped: int | None = None) -> LearnerReport:
    not_taken = [SkippedStep(step=skipped, stage=0, reason="no question of it has a row", saved="")] if skipped else []
    return LearnerReport(
        steps=[metrics(step) for step in steps],
        rewards={step: rewards(step) for step in steps},
        skipped=not_taken,
        left_out=[LeftOut(step=one.step, rows=[unread(one.step)]) for one in not_taken],
    )


def unread(step: int) -> Rejected:
    return Rejected(row=f"p{step}", reason="its picture is gone", kind="learner")


def told(directory: RunDirectory, *all_news: LearnerReport) -> None:
    with Journal(directory, "demo.yaml") as journal:
        for one in all_news:
            journal.take(one, lambda *_: None)


def content(directory: RunDirectory) -> list[list[dict[str, object]]]:
    return [read_lines(directory.file(name)) for name in FILES]


@pytest.mark.parametrize("name", FILES)
def test_steps_skips_and_rewards_are_recorded_once_wherever_a_kill_cut_their_files(name: str, tmp_path: Path) -> None:
    """The worker group tells what it did before its last checkpoint and takes the steps after it again."""
    directory = RunDirectory(config(tmp_path))
    whole = [news(1, skipped=2), news(3), news(4, skipped=5)]
    told(directory, *whole)
    expected, file = content(directory), directory.file(name)
    assert [[row["step"] for row in rows] for rows in expected] == [[1, 3, 4], [2, 5], [1, 1, 3, 3, 4, 4], [2, 5]]
    lines = file.read_bytes()
    ends = [index + 1 for index, byte in enumerate(lines) if byte == ord("\n")]
    for cut in {0, *ends, *(end - 7 for end in ends)}:
        file.write_bytes(lines[:cut])
        before_checkpoint = LearnerReport.of(news(1, 3, skipped=2).as_json())
        told(directory, before_checkpoint, whole[2])
        assert content(directory) == expected, f"cut after {cut} bytes"
        told(directory, *whole)
        assert content(directory) == expected


def test_a_step_taken_again_has_its_new_rewards_alone(tmp_path: Path) -> None:
    directory = RunDirectory(config(tmp_path))
    told(directory, news(1, 2), LearnerReport(steps=[metrics(1, loss=2.0)], rewards={1: rewards(1, spread=0.7)}))
    assert [(row["step"], row["advantages"]) for row in read_lines(directory.file("rewards.jsonl"))] == [
        (1, [0.7]),
        (1, [0.7]),
        (2, [0.5]),
        (2, [0.5]),
    ]
    told(directory, news(skipped=1))
    assert [row["step"] for row in read_lines(directory.file("rewards.jsonl"))] == [2, 2]


def test_rows_that_were_left_out_and_how_far_the_engine_is_are_known_to_a_later_call(tmp_path: Path) -> None:
    directory = RunDirectory(config(tmp_path))
    first, again = (
        LogprobMismatch(stage=stage, rows=64, row="p1", mean_gap=gap, token_gap=0.5, bound=0.1, apart=0)
        for stage, gap in ((0, 0.02), (1, 0.03))
    )
    told(directory, news(1, skipped=2), LearnerReport(agreements=[first, again]), LearnerReport(agreements=[again]))
    with Journal(directory, "demo.yaml") as journal:
        assert journal.left_out() == [unread(2)]
        assert [journal.content["agreement"][stage]["mean_gap"] for stage in ("0", "1")] == [0.02, 0.03]
