"""Writes and finds the worker group's checkpoints: asynchronous, atomic, only the last few kept.

    step-00000050/student/…         the files that the workers wrote
                  rank-00000.json   each worker's note: step, number of workers, SHA-256 of each of its files

Every worker writes its part to a directory of its own and trains on, while a thread flushes the files, moves them to
their place and then writes the note. A checkpoint counts once all notes exist, so an incomplete one is never loaded.
Ray Train's own checkpoints are not used: it overwrites their index in place, and a kill can leave half an index.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from masters_ray.errors import LearnerError, writing
from masters_ray.files import write_json


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A complete checkpoint on disk; only as many workers as wrote it can resume from it."""

    folder: Path
    step: int
    workers: int

    def intact(self, rank: int) -> bool:
        """Returns whether all files of worker ``rank`` exist with the SHA-256 in its note."""
        note = _read_note(self.folder, rank)
        return note is not None and all(
            (self.folder / name).is_file() and _sha256(self.folder / name) == digest
            for name, digest in note["sha256"].items()
        )


def find(folder: Path) -> list[Checkpoint]:
    """Returns all complete checkpoints in a directory, oldest first."""
    complete = []
    for candidate in sorted(folder.glob("step-*")):
        first = _read_note(candidate, 0)
        if first is not None and all(_read_note(candidate, rank) for rank in range(1, first["workers"])):
            complete.append(Checkpoint(folder=candidate, step=first["step"], workers=first["workers"]))
    return complete


class CheckpointWriter:
    """Writes one worker's part of every checkpoint; the worker of rank 0 also removes old checkpoints."""

    def __init__(self, folder: Path, *, rank: int, workers: int, kept: int) -> None:
        self._folder, self._rank, self._workers, self._kept = folder, rank, workers, kept
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._publishing: Future[None] | None = None

    def save(self, step: int, write: Callable[[Path], None]) -> None:
        """Waits for the previous part, then has ``write`` fill a directory. Raises LearnerError without room."""
        self.wait()
        building = self._folder / f"step-{step:08d}" / f"rank-{self._rank:05d}.building"
        with writing(building.parent, LearnerError, RuntimeError):  # torch.save reports a full disk as a RuntimeError
            shutil.rmtree(building, ignore_errors=True)
            write(building)
        self._publishing = self._thread.submit(self._publish, building, step)

    def wait(self) -> None:
        """Returns when the last part counts. Raises LearnerError when it could not be written."""
        unfinished, self._publishing = self._publishing, None
        if unfinished is not None:
            with writing(f"{self._folder}: a checkpoint", LearnerError):
                unfinished.result()

    def close(self) -> None:
        try:
            self.wait()
        finally:
            self._thread.shutdown()

    def _publish(self, building: Path, step: int) -> None:
        target, note = building.parent, _note(building.parent, self._rank)
        note.unlink(missing_ok=True)
        digests = {}
        for file in sorted(path for path in building.rglob("*") if path.is_file()):
            with file.open("rb") as content:
                os.fsync(content.fileno())
            name = file.relative_to(building)
            digests[str(name)] = _sha256(file)
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            file.replace(target / name)
        shutil.rmtree(building)
        write_json(note, {"step": step, "workers": self._workers, "sha256": digests})
        if self._rank == 0:
            self._remove_old()

    def _remove_old(self) -> None:
        """Removes all but the last ``kept`` complete checkpoints, and incomplete ones older than the newest of them."""
        last = [one.folder for one in find(self._folder)[-self._kept :]]
        for candidate in self._folder.glob("step-*"):
            if last and candidate not in last and candidate.name <= last[-1].name:
                for note in candidate.glob("rank-*.json"):
                    note.unlink()  # before the files: without notes a half-removed checkpoint does not count
                shutil.rmtree(candidate)


def _note(folder: Path, rank: int) -> Path:
    return folder / f"rank-{rank:05d}.json"


def _read_note(folder: Path, rank: int) -> dict[str, Any] | None:
    try:
        content: dict[str, Any] = json.loads(_note(folder, rank).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):  # an unreadable note counts as missing
        return None
    return content


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
