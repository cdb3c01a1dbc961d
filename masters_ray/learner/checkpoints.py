"""Checkpoints of the worker group: written beside training, the last few kept, whole or not there.

    step-00000050/student/…         what the workers wrote, each its own files
                  rank-00000.json   the note of each: its files with their SHA-256, and the checkpoint's facts

Every worker writes its own part to the node's temporary directory and goes on training while a thread copies it and, as
the last thing, puts its note. A checkpoint counts once all notes are there, so nothing that was cut short is ever
loaded. Ray Train's own checkpoints are not used: their index is written over in place, which a kill can tear.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from masters_ray.errors import LearnerError, writing


@dataclass(frozen=True, kw_only=True)
class Found:
    """A complete checkpoint."""

    folder: Path
    step: int
    """Optimizer steps that it has seen."""
    workers: int
    """How many wrote it; only as many can go on from it."""


class Checkpoints:
    """One worker's view of the directory of checkpoints."""

    def __init__(self, folder: Path, *, rank: int, workers: int, kept: int) -> None:
        self._folder, self._workers, self._kept = folder, workers, kept
        self.rank = rank
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None
        prefix = f"masters-ray-{hashlib.sha256(str(folder).encode()).hexdigest()[:12]}-{rank}-"
        for left_behind in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
            shutil.rmtree(left_behind, ignore_errors=True)
        with writing(f"{tempfile.gettempdir()} (TMPDIR)", LearnerError):
            self._staging = Path(tempfile.mkdtemp(prefix=prefix))
        with writing(folder, LearnerError):
            folder.mkdir(parents=True, exist_ok=True)

    def save(self, step: int, write: Callable[[Path], None]) -> None:
        """Have ``write`` fill a local directory now, and copy it in the background; waits for the one before.

        Raises LearnerError when ``write`` finds no room, or when the one before could not be copied.
        """
        self.wait()
        local = self._staging / f"step-{step}"
        try:
            write(local)
        except (OSError, RuntimeError) as error:  # torch.save tells a full disk as a RuntimeError
            raise LearnerError(
                f"{local}: a checkpoint cannot be written before it is copied: {error}. Is there room? TMPDIR chooses "
                "another directory."
            ) from error
        self._writing = self._writer.submit(self._publish, local, step)

    def wait(self) -> None:
        """Until nothing is being written. Raises what went wrong while it was."""
        if self._writing is not None:
            writing, self._writing = self._writing, None
            try:
                writing.result()
            except OSError as error:
                raise LearnerError(
                    f"{self._folder}: a checkpoint cannot be written: {error}. Make room and start the same run again: "
                    "it goes on from the last whole one."
                ) from error

    def close(self) -> None:
        """Wait, and remove the local directory."""
        try:
            self.wait()
        finally:
            self._writer.shutdown()
            shutil.rmtree(self._staging, ignore_errors=True)

    def complete(self) -> list[Found]:
        """All complete checkpoints, oldest first."""
        return find(self._folder)

    def intact(self, found: Found) -> bool:
        """Whether the files that this worker wrote are as it wrote them, to the byte."""
        note = _read_note(found.folder, self.rank)
        return note is not None and all(
            (found.folder / name).is_file() and _sha256(found.folder / name) == content
            for name, content in note["sha256"].items()
        )

    def _publish(self, local: Path, step: int) -> None:
        target = self._folder / f"step-{step:08d}"
        _note(target, self.rank).unlink(missing_ok=True)
        digests = {}
        for file in sorted(path for path in local.rglob("*") if path.is_file()):
            name = file.relative_to(local)
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            digests[str(name)] = _copy(file, target / name)
        shutil.rmtree(local)
        note = {"step": step, "workers": self._workers, "sha256": digests}
        unfinished = target / f"rank-{self.rank:05d}.tmp"
        unfinished.write_text(json.dumps(note, indent=1), encoding="utf-8")
        _flush(unfinished)
        unfinished.replace(_note(target, self.rank))
        if self.rank == 0:
            self._remove_old()

    def _remove_old(self) -> None:
        """All but the last; parts that were cut short by a kill as well."""
        found = self.complete()
        keep = {one.folder for one in found[-self._kept :]}
        newest = found[-1].step if found else -1
        for folder in self._folder.glob("step-*"):
            if folder not in keep and _step(folder) <= newest:
                for note in folder.glob("rank-*.json"):
                    note.unlink()  # first: it counts no more, whatever happens to the rest
                shutil.rmtree(folder)


def find(folder: Path) -> list[Found]:
    """All complete checkpoints in a directory, oldest first."""
    complete = []
    for candidate in sorted(folder.glob("step-*")):
        first = _read_note(candidate, 0)
        if first is None:
            continue
        workers = int(first["workers"])
        if all(_read_note(candidate, rank) is not None for rank in range(1, workers)):
            complete.append(Found(folder=candidate, step=first["step"], workers=workers))
    return complete


def _step(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def _note(folder: Path, rank: int) -> Path:
    return folder / f"rank-{rank:05d}.json"


def _read_note(folder: Path, rank: int) -> dict[str, Any] | None:
    try:
        content: dict[str, Any] = json.loads(_note(folder, rank).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):  # a note that cannot be read counts as none
        return None
    return content


def _copy(source: Path, target: Path) -> str:
    """Copy a file, down to the disk. Returns its SHA-256."""
    digest = hashlib.sha256()
    with source.open("rb") as read, target.open("wb") as write:
        while piece := read.read(1 << 22):
            digest.update(piece)
            write.write(piece)
    _flush(target)
    return digest.hexdigest()


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _flush(file: Path) -> None:
    with file.open("rb") as content:
        os.fsync(content.fileno())
