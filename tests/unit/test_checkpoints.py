import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from masters_ray.errors import LearnerError
from masters_ray.learner.checkpoints import CheckpointWriter, find


def saved(folder: Path, step: int, *, rank: int = 0, workers: int = 1, kept: int = 2) -> None:
    def write(local: Path) -> None:
        (local / "student").mkdir(parents=True)
        (local / "student" / f"weights-{rank}.pt").write_text(f"after {step}")

    checkpoints = CheckpointWriter(folder, rank=rank, workers=workers, kept=kept)
    checkpoints.save(step, write)
    checkpoints.close()


def steps(folder: Path) -> list[int]:
    return [found.step for found in find(folder)]


def test_the_last_are_kept_and_a_changed_byte_is_found(tmp_path: Path) -> None:
    for step in (10, 20, 30, 40):
        saved(tmp_path, step)
    files = ["rank-00000.json", "student/weights-0.pt"]
    kept = [f"step-000000{step}/{name}" for step in (30, 40) for name in files]
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.*")) == kept
    found = find(tmp_path)
    assert [one.step for one in found] == [30, 40] and found[1].intact(0) and not found[1].intact(1)
    file = found[1].folder / "student" / "weights-0.pt"
    for spoil in (lambda: file.write_text("After 40"), file.unlink):
        spoil()
        assert not found[1].intact(0)


def test_a_checkpoint_counts_once_every_worker_has_written_its_part_and_a_note_that_can_be_read(tmp_path: Path) -> None:
    for rank, expected in ((0, []), (1, [10])):
        saved(tmp_path, 10, rank=rank, workers=2)
        assert steps(tmp_path) == expected
    assert find(tmp_path)[0].workers == 2
    (tmp_path / "step-00000010" / "rank-00001.json").write_text("{")
    assert steps(tmp_path) == []


def test_a_part_that_a_kill_left_behind_is_written_over_and_removed_later(tmp_path: Path) -> None:
    torn = tmp_path / "step-00000010" / "student" / "weights-0.pt"
    half = tmp_path / "step-00000010" / "rank-00000.building" / "student" / "other.pt"
    for file in (torn, half):
        file.parent.mkdir(parents=True)
        file.write_text("tor")
    assert find(tmp_path) == []
    saved(tmp_path, 10, kept=1)
    assert torn.read_text() == "after 10" and not half.exists()
    (tmp_path / "step-00000015").mkdir()
    saved(tmp_path, 20, kept=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000020"]


def test_a_worker_trains_on_while_its_files_are_flushed_and_the_next_checkpoint_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(folder: Path) -> None:
        folder.mkdir(parents=True)
        (folder / "weights.pt").write_text("x")

    may_flush = threading.Event()
    monkeypatch.setattr(os, "fsync", lambda _: may_flush.wait(10))
    checkpoints = CheckpointWriter(tmp_path, rank=0, workers=1, kept=2)
    checkpoints.save(1, write)
    assert steps(tmp_path) == []
    threading.Timer(0.1, may_flush.set).start()
    checkpoints.save(2, write)
    assert 1 in steps(tmp_path)
    checkpoints.close()
    assert steps(tmp_path) == [1, 2]


def test_a_full_disk_is_named_with_what_to_do_in_torch_s_words_too(tmp_path: Path) -> None:
    def write(_: Path) -> None:
        raise RuntimeError("failed writing file")

    with pytest.raises(LearnerError, match=r"step-00000007: cannot be written .*Make room"):
        CheckpointWriter(tmp_path, rank=0, workers=1, kept=2).save(7, write)


WRITES_FOREVER = """
import itertools, sys
from pathlib import Path
from masters_ray.learner.checkpoints import CheckpointWriter

def write(local):
    local.mkdir(parents=True)
    for part in range(20):
        (local / f"part-{part}").write_bytes(bytes([step % 256]) * 1_000_000)

checkpoints = CheckpointWriter(Path(sys.argv[1]), rank=0, workers=1, kept=2)
for step in itertools.count(1):
    checkpoints.save(step, write)
    print(step, flush=True)
"""


def test_a_kill_while_writing_leaves_whole_checkpoints_only(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", WRITES_FOREVER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for _ in range(3):
        process.stdout.readline()
    time.sleep(random.uniform(0, 0.3))
    process.kill()
    process.wait()
    found = find(tmp_path)
    assert found, "two of three are whole"
    for one in found:
        assert one.intact(0)
        parts = [file.read_bytes() for file in sorted(one.folder.glob("part-*"))]
        assert [set(part) for part in parts] == [{one.step % 256}] * 20
    saved(tmp_path, 1000)
    assert steps(tmp_path)[-1] == 1000
