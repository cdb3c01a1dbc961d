"""What goes wrong while rollouts are made: nothing is lost, nothing is made twice, the account is balanced.

``make test`` plays a short round; ``make test-faults`` plays MASTERS_FAULT_ROUNDS long ones. A round prints its seed,
and MASTERS_FAULT_SEED plays it again.
"""

import contextlib
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
FAULTS = ("second run", "replica", "driver", "torn shard", "replica", "raylet")[: 6 if ROUNDS > 1 else 3]
ROWS, SPREAD = (864, 8) if ROUNDS > 1 else (336, 4)
"""SPREAD: most shards between two faults: all faults come before the run's end, and some fall between two stages."""
SMALL = [f"data.train.rows={ROWS}", "data.held_out.rows=6", "rollout.batch_rows=8", "cluster.local_cpus=4"]


def start(folder: Path) -> subprocess.Popen[bytes]:
    words = [*PROGRAM, "generate", "conf/demo.yaml", f"run.dir={folder}", *SMALL]
    nothing, told = subprocess.DEVNULL, (folder / "stderr.txt").open("wb")
    return subprocess.Popen(words, cwd=ROOT, env=environment(), stdout=nothing, stderr=told, start_new_session=True)


def shards(folder: Path) -> dict[Path, int]:
    """Shard → when it was written, ns."""
    return {file: file.stat().st_mtime_ns for file in folder.glob("rollouts/*/shard-*.parquet")}


def wait_for_shards(process: subprocess.Popen[bytes], folder: Path, number: int) -> None:
    deadline = time.monotonic() + 240
    while len(shards(folder)) < number:
        assert process.poll() is None, (folder / "stderr.txt").read_text()
        assert time.monotonic() < deadline, "no progress"
        time.sleep(0.05)


def kill(process: subprocess.Popen[bytes], victim: str, dice: random.Random) -> None:
    """The victim and, for a driver, all that it started, at once and without a word."""
    chosen = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    if victim != "driver":
        name = "ray::ReplicaActor" if victim == "replica" else "raylet"
        chosen = [dice.choice([one for one in chosen if name in " ".join(one.cmdline()[:1]) or one.name() == name])]
    for one in chosen:
        with contextlib.suppress(ProcessLookupError):
            os.kill(one.pid, signal.SIGKILL)


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


def refuse_a_second_run(process: subprocess.Popen[bytes], folder: Path) -> None:
    process.send_signal(signal.SIGSTOP)  # it must not be done before the second one looks
    second = masters_ray("generate", "conf/demo.yaml", f"run.dir={folder}", *SMALL)
    process.send_signal(signal.SIGCONT)
    assert second.returncode == 1
    assert "another process works here" in second.stderr


@pytest.mark.timeout(1500)
@pytest.mark.parametrize("number", range(ROUNDS))
def test_faults_lose_nothing_and_double_nothing(number: int, tmp_path: Path) -> None:
    seed = int(os.environ.get("MASTERS_FAULT_SEED", random.SystemRandom().randrange(2**31)))
    print(f"round {number}: MASTERS_FAULT_SEED={seed}")
    dice = random.Random(seed)
    process, kept = start(tmp_path), dict[Path, int]()
    for fault in FAULTS:
        wait_for_shards(process, tmp_path, len(kept) + dice.randint(1, SPREAD))
        time.sleep(dice.uniform(0, 1))
        kept |= shards(tmp_path)
        print(f"{len(kept)} shards are there: {fault}")
        if fault == "second run":
            refuse_a_second_run(process, tmp_path)
            continue
        kill(process, "driver" if fault == "torn shard" else fault, dice)
        if fault == "replica":
            continue
        end(process)
        if fault == "torn shard":
            damaged = dice.choice(sorted(kept))
            print(f"damaged: {damaged.relative_to(tmp_path)}")
            damaged.write_bytes(damaged.read_bytes()[:-100])
            del kept[damaged]
        process = start(tmp_path)
    end(process)
    finished = masters_ray("generate", "conf/demo.yaml", f"run.dir={tmp_path}", *SMALL)
    assert finished.returncode == 0, finished.stderr
    assert {file: written for file, written in shards(tmp_path).items() if file in kept} == kept, "made twice"
    folders = sorted((tmp_path / "rollouts").iterdir())
    verified = masters_ray("store", "verify", *map(str, folders))
    assert verified.returncode == 0, verified.stderr
    accounts = [account for one in folders for account in store.read_accounts(one).values()]
    asked = [position for account in accounts for position in account.asked]
    assert sorted(asked) == list(range(ROWS)), "lost or asked twice"
    assert [row.position for one in folders for row in store.read(one)] == list(range(ROWS)), "none is set aside"
