"""Every file that a run writes, on a disk that is full or in a directory that takes none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from masters_ray import data
from masters_ray.errors import DataError, LearnerError, MastersError, StoreError
from masters_ray.files import write_text
from masters_ray.learner.checkpoints import save
from masters_ray.pipeline import held_out
from masters_ray.pipeline.curriculum import Difficulties
from masters_ray.pipeline.journal import Journal
from masters_ray.pipeline.run_dir import RunDirectory
from tests.unit.test_curriculum import QUESTIONS, SAID, Rater
from tests.unit.test_directory import config, metrics
from tests.unit.test_journal import rewards

Write = Callable[[Path], object]


def a_step(root: Path) -> None:
    """Its metrics cannot be added to the file that is there when it is told."""
    with Journal(RunDirectory(config(root)), "demo.yaml") as journal:
        (root / "metrics.jsonl").symlink_to("/dev/full")
        journal.record(metrics(1))


def some_rewards(root: Path) -> None:
    with Journal(RunDirectory(config(root)), "demo.yaml") as journal:
        (root / "rewards.jsonl").symlink_to("/dev/full")
        journal.record(metrics(1), rewards(1))


def marks(root: Path) -> None:
    held_out.write_marks(root / "evaluation" / "teacher.json", [], "", "")


WRITERS: dict[str, tuple[Write, type[MastersError]]] = {
    "settings.json": (lambda root: RunDirectory(config(root)).claim(), StoreError),
    "config.yaml": (lambda root: RunDirectory(config(root)).claim(), StoreError),
    "journal.json": (lambda root: Journal(RunDirectory(config(root)), "demo.yaml").note("a", "b"), StoreError),
    "metrics.jsonl": (a_step, StoreError),
    "rewards.jsonl": (some_rewards, StoreError),
    "evaluation/teacher.json": (marks, StoreError),
    "report.html": (lambda root: write_text(root / "report.html", "x"), StoreError),
    "quarantine.jsonl": (lambda root: data.write_quarantine(root / "quarantine.jsonl", []), DataError),
}


@pytest.mark.parametrize("file", WRITERS)
def test_a_full_disk_is_a_sentence_that_names_the_file(file: str, tmp_path: Path) -> None:
    write, kind = WRITERS[file]
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / (file + ".tmp")).symlink_to("/dev/full")
    if file == "quarantine.jsonl":  # an empty file fits on a full disk
        (tmp_path / (file + ".tmp")).unlink()
        (tmp_path / (file + ".tmp")).mkdir()
    with pytest.raises(kind, match=rf"{file}: cannot be written \(.*\)\. Make room") as caught:
        write(tmp_path)
    assert "\n" not in str(caught.value)


def locked(root: Path) -> None:
    with RunDirectory(config(root / "run")).locked():
        pass


def difficulty(root: Path) -> None:
    Difficulties(root / "difficulty", "rating", "t" * 64).ask(Rater(SAID), QUESTIONS, 4)  # type: ignore[arg-type]


def plotted(root: Path) -> None:
    with Journal(RunDirectory(config(root)), "demo.yaml") as journal:
        journal.plot("a", 1.0, 1)


def a_checkpoint(root: Path) -> None:
    save(root / "checkpoints", 1, lambda folder: folder.mkdir(parents=True), rank=0, workers=1, kept=1)


@pytest.mark.parametrize(
    ("place", "write", "kind"),
    [
        ("run", locked, StoreError),
        ("tensorboard", plotted, StoreError),
        ("evaluation", marks, StoreError),
        ("difficulty", difficulty, StoreError),
        ("checkpoints", a_checkpoint, LearnerError),
    ],
)
def test_a_file_where_a_directory_belongs_is_named(
    place: str, write: Write, kind: type[MastersError], tmp_path: Path
) -> None:
    (tmp_path / place).write_text("")
    with pytest.raises(kind, match=rf"{place}.*: cannot be written \(") as caught:
        write(tmp_path)
    assert "Make room or mend the directory, and call again" in str(caught.value)
