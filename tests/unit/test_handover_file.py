"""Weights on their way to an engine's processes, in small stand-ins for shared memory and the temporary directory."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from masters_ray.engines import handover_file
from masters_ray.engines.handover_file import PREFIX, handed_over
from masters_ray.errors import ReplicaError

BYTES = 4000


def tensors() -> Iterator[tuple[str, Tensor]]:
    yield "a", torch.arange(500.0)
    yield "b", torch.ones(500)


class Places:
    """Shared memory with ``free`` bytes, and temporary files."""

    def __init__(self, folder: Path) -> None:
        self.shared, self.temporary = folder / "shm", folder / "tmp"
        self.free = 10 * BYTES
        for one in (self.shared, self.temporary):
            one.mkdir()

    def names(self) -> list[str]:
        return sorted(one.name for place in (self.shared, self.temporary) for one in place.iterdir())


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Places:
    made = Places(tmp_path)
    monkeypatch.setattr(handover_file, "_SHARED_MEMORY", made.shared)
    monkeypatch.setattr(handover_file.tempfile, "tempdir", str(made.temporary))
    monkeypatch.setattr(handover_file.shutil, "disk_usage", lambda _: SimpleNamespace(free=made.free))
    return made


def dead_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_tensors_are_there_during_the_block_and_gone_after_it(places: Places) -> None:
    with handed_over(tensors()) as folder:
        assert folder.parent == places.shared and folder.name.startswith(f"{PREFIX}{os.getpid()}-")
        found = load_file(folder / "model.safetensors")
        assert found.keys() == {"a", "b"} and torch.equal(found["a"], torch.arange(500.0))
    assert places.names() == []
    with pytest.raises(KeyError), handed_over(tensors()):
        raise KeyError
    assert places.names() == []


@pytest.mark.parametrize(("free", "is_shared"), [(4401, True), (4400, False), (64, False)])
def test_shared_memory_is_used_only_if_it_has_a_tenth_more_room_than_needed(
    free: int, is_shared: bool, places: Places
) -> None:
    places.free = free
    with handed_over(tensors()) as folder:
        assert folder.parent == (places.shared if is_shared else places.temporary)


def test_without_shared_memory_tensors_are_temporary_files(places: Places) -> None:
    places.shared.rmdir()
    with handed_over(tensors()) as folder:
        assert folder.parent == places.temporary


def test_what_dead_processes_left_is_removed_and_nothing_else(places: Places) -> None:
    dead, here = dead_process(), handover_file._where()
    kept = [
        f"{PREFIX}{os.getppid()}-{here}-lives",
        f"{PREFIX}{dead}-{'f' * 8}-of-another-host",
        f"{PREFIX}{dead}",
        f"another-{PREFIX}{dead}-{here}-x",
    ]
    for name in kept:
        (places.shared / name).mkdir()
    for place in (places.shared, places.temporary):
        left = place / f"{PREFIX}{dead}-{here}-left"
        left.mkdir()
        (left / "model.safetensors").write_bytes(b"x")
    with handed_over(tensors()):
        pass
    assert places.names() == sorted(kept)


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left"), SafetensorError("No space left (28)")])
def test_tensors_that_cannot_be_written_name_the_place_the_bytes_and_the_remedy(
    error: Exception, places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise error

    monkeypatch.setattr(handover_file, "save_file", full)
    told = rf"^{re.escape(str(places.shared / PREFIX))}.*: .* {BYTES} bytes, .*No space left.*TMPDIR.*--shm-size"
    with pytest.raises(ReplicaError, match=told), handed_over(tensors()):
        pass
    assert places.names() == []
