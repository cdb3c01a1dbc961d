"""Processes that are killed while rollouts are made: nothing is lost, nothing is made twice, the account is balanced.

``make test`` kills two; ``make test-faults`` plays MASTERS_FAULT_ROUNDS rounds with four. A round prints its seed, and
MASTERS_FAULT_SEED plays it again.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from masters_ray import store
from tests.conftest import ROOT
from tests.e2e.runs import PROGRAM, environment, masters_ray

pytestmark = pytest.mark.e2e
ROUNDS = int(os.environ.get("MASTERS_FAULT_ROUNDS", "1"))
VICTIMS = ("replica", "driver", "replica", "raylet") if ROUNDS > 1 else ("replica", "driver")
ROWS = 288
SMALL = [f"data.train.rows={ROWS}", "data.held_out.rows=6", "rollout.batch_rows=8", "cluster.local_cpus=4"]


def start(folder: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [*PROGRAM, "generate", "conf/demo.yaml", f"run.dir={folder}", *SMALL],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def shards(folder: Path) -> dict[Path, int]:
    """Shard → when it was written, ns."""
    return {file: file.stat().st_mtime_ns for file in folder.glob("rollouts/*/shard-*.parquet")}


def progressed(process: subprocess.Popen[bytes], folder: Path, seen: int) -> bool:
    """Wait until a shard more than ``seen`` is there; False when the process ended before."""
    deadline = time.monotonic() + 240
    while len(shards(folder)) <= seen:
        if process.poll() is not None:
            return False
        assert time.monotonic() < deadline, "no progress"
        time.sleep(0.05)
    return True


def kill(process: subprocess.Popen[bytes], victim: str, dice: random.Random) -> None:
    """The victim and, for a driver, all that it started, at once and without a word."""
    family = psutil.Process(process.pid).children(recursive=True)
    if victim == "driver":
        chosen = [psutil.Process(process.pid), *family]
    else:
        name = "ray::Host" if victim == "replica" else "raylet"
        chosen = [dice.choice([one for one in family if name in " ".join(one.cmdline()[:1]) or one.name() == name])]
    for one in chosen:
        try:
            os.kill(one.pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def end(process: subprocess.Popen[bytes]) -> None:
    """Wait for a driver that lost its cluster, and let nothing of it live on."""
    family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    try:
        process.wait(timeout=120)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for one in family:
        if one.is_running():
            one.kill()


@pytest.mark.parametrize("number", range(ROUNDS))
def test_killed_processes_lose_nothing_and_double_nothing(number: int, tmp_path: Path) -> None:
    seed = int(os.environ.get("MASTERS_FAULT_SEED", random.SystemRandom().randrange(2**31)))
    print(f"round {number}: MASTERS_FAULT_SEED={seed}")
    dice = random.Random(seed)
    process, kept = start(tmp_path), dict[Path, int]()
    for victim in VICTIMS:
        if not progressed(process, tmp_path, len(kept)):
            break
        time.sleep(dice.uniform(0, 2))
        kept |= shards(tmp_path)
        print(f"{len(kept)} shards are there; the {victim} is killed")
        kill(process, victim, dice)
        if victim != "replica":
            end(process)
            process = start(tmp_path)
    end(process)
    finished = masters_ray("generate", "conf/demo.yaml", f"run.dir={tmp_path}", *SMALL)
    assert finished.returncode == 0, finished.stderr
    assert {file: written for file, written in shards(tmp_path).items() if file in kept} == kept, "made twice"
    folders = sorted((tmp_path / "rollouts").iterdir())
    verified = masters_ray("store", "verify", *map(str, folders))
    assert verified.returncode == 0, verified.stderr
    asked = [position for folder in folders for one in store.read_accounts(folder).values() for position in one.asked]
    aside = [
        position for folder in folders for one in store.read_accounts(folder).values() for position in one.rejected
    ]
    stored = [row.position for folder in folders for row in store.read(folder)]
    assert sorted(asked) == list(range(ROWS)), "lost or asked twice"
    assert sorted([*stored, *aside]) == list(range(ROWS))
    assert stored == sorted(stored)
    assert aside == []
