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
from typing import Any, NamedTuple

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
LEARNED, TAKEN_OVER, HALF_MADE = 4, (5, 6), 8
PATIENCE = 600.0
TIMES = ("seconds", "rollout_wait_s", "tokens_per_second", "mfu", "memory_gib")
"""Fields of a step's metrics that differ between equal runs."""


class Left(NamedTuple):
    """What a run had when its machine went down."""

    steps: list[dict[str, Any]]
    online: list[int]
    """The iterations that online.jsonl tells of."""
    written: dict[Path, int]
    """File that need not be made again → when it was written, ns."""
    half_made: RolloutGroup


@contextmanager
def started(run: Path, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The command, in a session of its own: every process that comes of it is told by that, and ends with the block."""
    process = subprocess.Popen(
        [*PROGRAM, "run", "conf/demo.yaml", f"run.dir={run}", *SETTINGS],
        cwd=ROOT,
        env=environment(),
        stdout=log.open("wb"),
        stderr=subprocess.STDOUT,
        start_new_session=True,
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
        try:
            if os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
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


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("killed") / "run"


@pytest.fixture(scope="module")
def left(run: Path) -> Left:
    log = run.parent / "first.txt"
    with started(run, log) as process:
        deadline = time.monotonic() + PATIENCE
        while not shards(run, HALF_MADE):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)  # driver, raylet and what belongs to them; Ray's workers see it and go
        process.wait()
        wait_until_all_are_gone(process.pid)
    assert [found.step for found in find(run / "learner" / "checkpoints")] == [LEARNED]
    assert not (run / "student").exists()
    half_made = cut_short(run)
    made = [file for place in ("rollouts", "evaluation", "data") for file in (run / place).rglob("*") if file.is_file()]
    made += shards(run, *(number for number in ONLINE if number < HALF_MADE))
    return Left(
        steps=read_lines(run / "metrics.jsonl"),
        online=[one["step"] for one in read_lines(run / "online.jsonl")],
        written={file: file.stat().st_mtime_ns for file in made},
        half_made=half_made,
    )


@pytest.fixture(scope="module")
def again(run: Path, left: Left) -> str:
    """What the same command prints after that, when it has ended."""
    log = run.parent / "second.txt"
    with started(run, log) as process:
        assert process.wait(PATIENCE) == 0, log.read_text()
        wait_until_all_are_gone(process.pid)
    return log.read_text()


@pytest.fixture(scope="module")
def fresh(run: Path, again: str) -> dict[int, list[RolloutGroup]]:
    """The rows of each online iteration, of stores that are closed."""
    rows = [row for stage in range(3) for row in store.read(run / "online" / f"stage-{stage}")]
    assert [row.position for row in rows] == positions(ONLINE), "whole iterations, once each"
    return {number: [row for row in rows if row.position in positions([number])] for number in ONLINE}


def test_it_goes_on_from_the_checkpoint_and_nothing_that_is_good_is_made_again(
    run: Path, left: Left, again: str
) -> None:
    assert {1, 2, 3, 4, 5} <= {one["step"] for one in left.steps} and left.online[:5] == [1, 2, 4, *TAKEN_OVER]
    assert again.count(f"the learner goes on after step {LEARNED}") == 1
    assert "rollouts at mask ratio" not in again
    assert len(shards(run, *TAKEN_OVER)) == 8
    assert {file: file.stat().st_mtime_ns for file in left.written} == left.written
    told = read_lines(run / "online.jsonl")
    assert [one["step"] for one in told[: len(left.online)]] == left.online
    assert [(one["step"], one["version"], one["ages"]) for one in told[len(left.online) :]] == [
        (number, WRITERS[number], [1] * 4) for number in (HALF_MADE, 9, 10, 12)
    ]


def test_every_step_is_there_once_and_those_that_were_taken_twice_were_the_same(
    run: Path, left: Left, again: str
) -> None:
    steps = read_lines(run / "metrics.jsonl")
    assert [step["step"] for step in steps] == list(range(1, 13))
    assert not (run / "skipped.jsonl").exists()
    expected = [(4, float(number - 1 - WRITERS[number])) if number in ONLINE else (0, 0.0) for number in range(1, 13)]
    assert [(step["fresh"], step["age"]) for step in steps] == expected
    assert [step["groups"] for step in steps] == [4] * 12
    for before, after in zip(left.steps, steps, strict=False):
        assert before | dict.fromkeys(TIMES) == after | dict.fromkeys(TIMES)


def test_each_iteration_has_one_writer_and_that_is_the_one_of_a_run_that_nobody_killed(
    left: Left, fresh: dict[int, list[RolloutGroup]]
) -> None:
    writers = {number: {(row.version, row.student_digest) for row in rows} for number, rows in fresh.items()}
    assert {number: version for number, [(version, _)] in writers.items()} == WRITERS, "one for all its rows"
    students = {one for found in writers.values() for one in found}
    assert len(students) == len({digest for _, digest in students}) == len(set(WRITERS.values()))
    assert writers[HALF_MADE] == {(left.half_made.version, left.half_made.student_digest)}, "student 6 to the bit"


def test_rows_are_whole_and_of_their_stage(run: Path, fresh: dict[int, list[RolloutGroup]]) -> None:
    offline = [list(store.read(run / "rollouts" / f"stage-{stage}")) for stage in range(3)]
    assert [[row.position for row in rows] for rows in offline] == [positions([3]), positions([7]), positions([11])]
    for number, rows in fresh.items():
        stage = (number - 1) // 4
        assert {row.stage for row in rows} == {stage}
        of_stage = {(row.mask_ratio, row.teacher_digest) for row in (*rows, *offline[stage])}
        assert len(of_stage) == 1, "the same masked teacher as before training"
    for folder in sorted((run / "online").iterdir()):
        assert list(look.verify(folder)), "every row is one of its shard's account"
        assert not list(folder.glob("*.tmp"))


def test_it_ends_as_any_run_does(run: Path, again: str) -> None:
    found = summary(run)
    assert found["wall_seconds"] >= sum(found["phases"].values()) * 0.9, "of both calls"
    assert (found["learner"]["steps"], found["learner"]["skipped"], found["learner"]["groups"]) == (12, 0, 48)
    online = found["online"]
    assert (online["steps"], online["groups"], online["mean_age"], online["largest_age"]) == (9, 36, 32 / 36, 1.0)
    assert (run / "student" / "model.safetensors").exists()
