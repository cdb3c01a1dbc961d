"""A run whose machine goes down in the middle of its online iterations, and the same command after that.

Twelve iterations of four questions in three stages, nine of them online, each written by a student who is one step
behind. Checkpoints come after every fourth. The machine goes down while iteration 8 is made, which student 6 writes:
iterations 5 and 6 are whole and were learned from, and the only checkpoint is the fourth.
"""

import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from masters_ray import store
from masters_ray.files import read_lines
from masters_ray.learner.checkpoints import find
from masters_ray.method import schedule
from masters_ray.records import RolloutGroup
from masters_ray.store import look
from tests.conftest import ROOT
from tests.e2e.runs import PROGRAM, SMALL, environment, long_form, summary

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1500), long_form]
SETTINGS = [
    *SMALL,
    *("data.held_out.rows=12", "learner.groups_per_step=4", "learner.tokens_per_micro_batch=4096"),
    *("learner.checkpoint_every=4", "rollout.online_fraction=0.75", "rollout.max_staleness=1", "rollout.batch_rows=1"),
]
ONLINE = [1, 2, 4, 5, 6, 8, 9, 10, 12]
WRITERS = {number: schedule.version_for(number, max_staleness=1) for number in ONLINE}
LEARNED, HALF_MADE = 4, 8
PATIENCE = 600.0
TIMES = ("seconds", "rollout_wait_s", "tokens_per_second", "mfu", "memory_gib")  # differ between equal runs


@contextmanager
def started(run: Path, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The command, in a session of its own: every process that comes of it is told by that, and ends with the block."""
    command = [*PROGRAM, "run", "conf/demo.yaml", f"run.dir={run}", *SETTINGS]
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment(), stdout=log.open("wb"), stderr=subprocess.STDOUT, start_new_session=True
    )
    try:
        yield process
    finally:
        for one in alive(process.pid):
            with suppress(psutil.NoSuchProcess):
                one.kill()
        process.wait()


def alive(session: int) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with suppress(ProcessLookupError, psutil.NoSuchProcess):
            if os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def wait_until_all_are_gone(session: int) -> None:
    deadline = time.monotonic() + 60
    while (found := alive(session)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not found


def positions(numbers: Sequence[int]) -> list[int]:
    return [4 * (number - 1) + place for number in numbers for place in range(4)]


def shards(run: Path, *numbers: int) -> list[Path]:
    """Of online iterations, as far as they are there: one for each question."""
    wanted = (f"stage-{place // 16}/shard-{place:08d}.parquet" for place in positions(sorted(numbers)))
    return [run / "online" / name for name in wanted if (run / "online" / name).exists()]


def cut_short(run: Path) -> RolloutGroup:
    """Leave what a kill leaves that comes between two shards of an iteration: the first, and half of the next one; and
    lines that were being written. Returns the row that is left."""
    first, *later = shards(run, HALF_MADE)
    for shard in later:
        shard.unlink()
    content = first.read_bytes()
    first.with_name(f"shard-{positions([HALF_MADE])[-1]:08d}.parquet.tmp").write_bytes(content[: len(content) // 2])
    for name in ("metrics.jsonl", "online.jsonl"):
        with (run / name).open("a") as lines:
            lines.write('{"step": 8, "sta')
    [row] = store.groups(store.read_shard(first.parent, first.name))
    return row


def test_the_same_command_goes_on_to_what_a_run_is_that_nobody_killed(tmp_path: Path) -> None:
    run, log = tmp_path / "run", tmp_path / "log.txt"
    with started(run, log) as process:
        deadline = time.monotonic() + PATIENCE
        while not shards(run, HALF_MADE):
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)  # driver, raylet and what belongs to them; Ray's workers see it and go
        process.wait()
        wait_until_all_are_gone(process.pid)
    assert [found.step for found in find(run / "learner" / "checkpoints")] == [LEARNED]
    half_made = cut_short(run)
    good = [file for place in ("rollouts", "evaluation", "data") for file in (run / place).rglob("*") if file.is_file()]
    good += shards(run, *(number for number in ONLINE if number < HALF_MADE))
    written = {file: file.stat().st_mtime_ns for file in good}
    steps_before, online_before = (read_lines(run / name) for name in ("metrics.jsonl", "online.jsonl"))
    assert {one["step"] for one in steps_before} >= {1, 2, 3, 4, 5}, "it had learned beyond its only checkpoint"

    with started(run, log) as process:
        assert process.wait(PATIENCE) == 0, log.read_text()
        wait_until_all_are_gone(process.pid)
    said = log.read_text()
    assert said.count(f"the learner goes on after step {LEARNED}") == 1
    assert "rollouts at mask ratio" not in said
    assert {file: file.stat().st_mtime_ns for file in good} == written, "nothing that is good is made again"
    online = read_lines(run / "online.jsonl")
    assert online[: len(online_before)] == online_before
    told = [(one["step"], one["version"], one["ages"]) for one in online]
    assert told == [(number, version, [number - 1 - version] * 4) for number, version in WRITERS.items()]

    steps = read_lines(run / "metrics.jsonl")
    assert [step["step"] for step in steps] == list(range(1, 13))
    expected = [(4, float(number - 1 - WRITERS[number])) if number in ONLINE else (0, 0.0) for number in range(1, 13)]
    assert [(step["fresh"], step["age"]) for step in steps] == expected
    for before, after in zip(steps_before, steps, strict=False):
        assert before | dict.fromkeys(TIMES) == after | dict.fromkeys(TIMES), "a step taken twice is the same"

    rows = [row for stage in range(3) for row in store.read(run / "online" / f"stage-{stage}")]
    assert [row.position for row in rows] == positions(ONLINE), "whole iterations, once each"
    writers = {(row.position // 4 + 1, row.version, row.student_digest) for row in rows}
    assert {(number, version) for number, version, _ in writers} == set(WRITERS.items())
    assert len(writers) == len(ONLINE), "one writer of an iteration"
    assert len({digest for *_, digest in writers}) == len(set(WRITERS.values()))
    assert (HALF_MADE, half_made.version, half_made.student_digest) in writers, "student 6 to the bit"
    for stage in range(3):
        offline = list(store.read(run / "rollouts" / f"stage-{stage}"))
        assert [row.position for row in offline] == positions([4 * stage + 3])
        of_stage = [row for row in (*offline, *rows) if row.stage == stage]
        assert {row.position // 16 for row in of_stage} == {stage}
        assert len({(row.mask_ratio, row.teacher_digest) for row in of_stage}) == 1, "the teacher of before training"
        folder = run / "online" / f"stage-{stage}"
        assert list(look.verify(folder)), "every row is one of its shard's account"
        assert not list(folder.glob("*.tmp"))

    found = summary(run)
    assert found["wall_seconds"] >= sum(found["phases"].values()) * 0.9, "of both calls"
    assert (found["learner"]["steps"], found["learner"]["skipped"], found["learner"]["groups"]) == (12, 0, 48)
    fresh = [(row["fresh"], row["age"]) for row in read_lines(run / "metrics.jsonl") if row["fresh"]]
    assert (len(fresh), sum(groups for groups, _ in fresh), max(age for _, age in fresh)) == (9, 36, 1.0)
    assert sum(groups * age for groups, age in fresh) == 32
