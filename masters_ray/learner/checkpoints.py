"""Writes and finds the worker group's checkpoints: atomic, only the last few kept.

    step-00000050/student/…         the files that the workers wrote
                  rank-00000.json   each worker's note: step, number of workers, SHA-256 of each of its files

Every worker writes its part to a directory of its own, moves the files to their place and then writes the note. A
checkpoint counts once all notes exist, so an incomplete checkpoint is never loaded.
Ray Train's own checkpoints are not used: it overwrites their index in place, and a kill can leave half an index.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from masters_ray.errors import LearnerError, writing
from masters_ray.files import write_text


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


def save(folder: Path, step: int, write: Callable[[Path], None], *, rank: int, workers: int, kept: int) -> None:
    """Has ``write`` write one worker's part of a checkpoint, and makes it count. The worker of rank 0 also removes all
    but the last ``kept`` complete checkpoints. Raises LearnerError when there is no room."""
    target = folder / f"step-{step:08d}"
    building, note = target / f"rank-{rank:05d}.building", _note(target, rank)
    # torch.save reports a full disk as a RuntimeError.
    with writing(target, LearnerError, RuntimeError):
        shutil.rmtree(building, ignore_errors=True)
        write(building)
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
        record = {"step": step, "workers": workers, "sha256": digests}
        write_text(note, json.dumps(record, indent=1))
        if rank == 0:
            _remove_old(folder, kept)


def _remove_old(folder: Path, kept: int) -> None:
    """Also removes incomplete checkpoints that are older than the newest complete one."""
    last = [one.folder for one in find(folder)[-kept:]]
    for candidate in folder.glob("step-*"):
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
