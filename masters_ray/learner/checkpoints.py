"""Writes and finds the worker group's checkpoints: asynchronous, atomic, only the last few kept.

    step-00000050/student/…         the files that the workers wrote
                  rank-00000.json   each worker's note: step, number of workers, SHA-256 of each of its files

Every worker writes its part to the node's temporary directory and continues training while a thread copies the part and
then writes the note. A checkpoint counts once all notes exist, so an incomplete checkpoint is never loaded.
Ray Train's own checkpoints are not used: it overwrites their index in place, and a kill can leave half an index.
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
class Checkpoint:
    """A complete checkpoint on disk."""

    folder: Path
    step: int
    """Optimizer steps up to this checkpoint."""
    workers: int
    """Number of workers that wrote it; only the same number can resume from it."""

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
        """Calls ``write`` on a local directory, then copies that in the background; waits for the previous copy first.

        Raises LearnerError when ``write`` finds no room, or when the previous copy failed.
        """
        self.wait()
        local = self._staging / f"step-{step}"
        # torch.save reports a full disk as a RuntimeError.
        with writing(f"{local} (in TMPDIR, from where it is copied)", LearnerError, RuntimeError):
            write(local)
        self._writing = self._writer.submit(self._publish, local, step)

    def wait(self) -> None:
        """Waits until the current copy is done. Raises LearnerError when it failed."""
        unfinished, self._writing = self._writing, None
        if unfinished is not None:
            with writing(f"{self._folder}: a checkpoint", LearnerError):
                unfinished.result()

    def close(self) -> None:
        """Waits, then removes the local directory."""
        try:
            self.wait()
        finally:
            self._writer.shutdown()
            shutil.rmtree(self._staging, ignore_errors=True)

    def _publish(self, local: Path, step: int) -> None:
        target = self._folder / f"step-{step:08d}"
        note = _note(target, self._rank)
        note.unlink(missing_ok=True)
        digests = {}
        for file in sorted(path for path in local.rglob("*") if path.is_file()):
            copy = target / file.relative_to(local)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)
            _flush(copy)
            digests[str(file.relative_to(local))] = _sha256(file)
        shutil.rmtree(local)
        unfinished = note.with_suffix(".tmp")
        content = {"step": step, "workers": self._workers, "sha256": digests}
        unfinished.write_text(json.dumps(content, indent=1), encoding="utf-8")
        _flush(unfinished)
        unfinished.replace(note)
        if self._rank == 0:
            self._remove_old()

    def _remove_old(self) -> None:
        """Removes all but the last ``kept`` complete checkpoints, and incomplete ones older than the newest of them."""
        kept = [one.folder for one in find(self._folder)[-self._kept :]]
        for folder in self._folder.glob("step-*"):
            if kept and folder not in kept and folder.name <= kept[-1].name:
                for note in folder.glob("rank-*.json"):
                    note.unlink()  # before the files: without notes a half-removed checkpoint does not count
                shutil.rmtree(folder)


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


def _flush(file: Path) -> None:
    with file.open("rb") as content:
        os.fsync(content.fileno())
