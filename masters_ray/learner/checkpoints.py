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

    def intact(self, rank: int) -> bool:
        """Whether the files that worker ``rank`` wrote are as it wrote them, to the byte."""
        note = _read_note(self.folder, rank)
        return note is not None and all(
            (self.folder / name).is_file() and _sha256(self.folder / name) == digest
            for name, digest in note["sha256"].items()
        )


def find(folder: Path) -> list[Found]:
    """All complete checkpoints in a directory, oldest first."""
    complete = []
    for candidate in sorted(folder.glob("step-*")):
        first = _read_note(candidate, 0)
        if first is not None and all(_read_note(candidate, rank) for rank in range(1, first["workers"])):
            complete.append(Found(folder=candidate, step=first["step"], workers=first["workers"]))
    return complete


class Checkpoints:
    """One worker's writer of checkpoints."""

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
        """Have ``write`` fill a local directory now, and copy it in the background; waits for the one before.

        Raises LearnerError when ``write`` finds no room, or when the one before could not be copied.
        """
        self.wait()
        local = self._staging / f"step-{step}"
        # torch.save tells a full disk as a RuntimeError.
        with writing(f"{local} (in TMPDIR, from where it is copied)", LearnerError, RuntimeError):
            write(local)
        self._writing = self._writer.submit(self._publish, local, step)

    def wait(self) -> None:
        """Until nothing is being written. Raises LearnerError when it could not be."""
        unfinished, self._writing = self._writing, None
        if unfinished is not None:
            with writing(f"{self._folder}: a checkpoint", LearnerError):
                unfinished.result()

    def close(self) -> None:
        """Wait, and remove the local directory."""
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
        """All but the last; parts that were cut short by a kill as well."""
        kept = [one.folder for one in find(self._folder)[-self._kept :]]
        for folder in self._folder.glob("step-*"):
            if kept and folder not in kept and folder.name <= kept[-1].name:
                for note in folder.glob("rank-*.json"):
                    note.unlink()  # first: it counts no more, whatever happens to the rest
                shutil.rmtree(folder)


def _note(folder: Path, rank: int) -> Path:
    return folder / f"rank-{rank:05d}.json"


def _read_note(folder: Path, rank: int) -> dict[str, Any] | None:
    try:
        content: dict[str, Any] = json.loads(_note(folder, rank).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):  # a note that cannot be read counts as none
        return None
    return content


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _flush(file: Path) -> None:
    with file.open("rb") as content:
        os.fsync(content.fileno())
