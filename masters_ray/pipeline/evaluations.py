"""What the models answered to the held-out questions, and to which questions."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from masters_ray import data, store, weights
from masters_ray.errors import StoreError
from masters_ray.evaluate import Marked
from masters_ray.files import as_json, read_json, read_record, write_json
from masters_ray.progress import say


def digest_of(problems: data.Problems) -> str:
    """SHA-256 of the questions, in whatever order they are asked."""
    return hashlib.sha256(np.sort(problems.digests).tobytes()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class HeldOutMarks:
    """A file of held-out answers."""

    questions: str
    """Digest of the questions."""
    model: str
    """Digest of the weights that answered."""
    marks: list[Marked]


def write(file: Path, marked: Sequence[Marked], questions: str, model: str) -> None:
    """questions, model: as of ``HeldOutMarks``."""
    write_json(file, as_json(HeldOutMarks(questions=questions, model=model, marks=list(marked))))


def read(file: Path) -> list[Marked]:
    """Raises StoreError when the file is damaged."""
    return read_record(file, HeldOutMarks, "Delete it to measure again.").marks


def refuse_rows_of_another(made: Sequence[store.Folder], file: Path, checkpoint: Path) -> None:
    """Raises StoreError when stores are there, and the teacher that was measured after them (``file``) had other
    weights than the checkpoint has."""
    if not file.exists() or not any(folder.has(store.MANIFEST) for folder in made):
        return
    try:
        content = read_json(file)
    except StoreError:
        return  # it is measured again
    now = weights.digest(checkpoint)
    if isinstance(content, dict) and content.get("model", now) != now:
        raise StoreError(
            f"{made[0]}: its rows were made by a teacher with other weights than {checkpoint} has now. Put them back, "
            "or choose another run.dir."
        )


def is_of(file: Path, questions: str, model: str | None = None) -> bool:
    """Whether a file is there and of these questions, and of this model if it is known. Otherwise the person who waits
    is told why it is measured again."""
    if not file.exists():
        return False
    try:
        content = read_json(file)
    except StoreError as error:
        say(f"{error}: it is measured again")
        return False
    found = content if isinstance(content, dict) else {}
    if found.get("questions") != questions:
        say(f"{file}: measured on other held-out questions than the data hold now; it is measured again")
        return False
    if model is not None and found.get("model") != model:
        say(f"{file}: measured with other weights than there are now; it is measured again")
        return False
    return True
