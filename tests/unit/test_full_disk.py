from collections.abc import Callable
from pathlib import Path

import pytest

from masters_ray import data
from masters_ray.errors import MastersError
from masters_ray.files import write_lines
from masters_ray.learner.checkpoints import CheckpointWriter
from masters_ray.pipeline import held_out
from masters_ray.pipeline.journal import Journal
from masters_ray.pipeline.run_dir import RunDirectory
from masters_ray.records import Rejected
from tests.builders import step as metrics
from tests.sources import good, jsonl
from tests.unit.test_curriculum import SAID, Rater, questions
from tests.unit.test_directory import config

Write = Callable[[Path], object]


def journal(root: Path) -> Journal:
    return Journal(RunDirectory(config(root)), "demo.yaml")


def a_step(root: Path) -> None:
    """What cannot be added to a file that is there when the step is told."""
    with journal(root) as opened:
        (root / "metrics.jsonl").symlink_to("/dev/full")
        opened.record(metrics(1))


def a_point(root: Path) -> None:
    with journal(root) as opened:
        opened.trackers.send({"a": 1.0}, 1)


WRITERS: dict[str, Write] = {
    "settings.json": lambda root: RunDirectory(config(root)).claim(),
    "journal.json": lambda root: journal(root).note("a", "b"),
    "metrics.jsonl": a_step,
    "evaluation/teacher.json": lambda root: held_out.write_marks(root / "evaluation" / "teacher.json", [], "", ""),
    "train.spool": lambda root: data.load([jsonl(root, [good(1)])], 0, 0.0, spool=root / "train.spool"),
    "quarantine.jsonl": lambda root: write_lines(root / "quarantine.jsonl", [Rejected(row="p", reason="dark")]),
}


@pytest.mark.parametrize("file", WRITERS)
def test_a_full_disk_is_a_sentence_that_names_the_file(file: str, tmp_path: Path) -> None:
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / (file + ".tmp")).symlink_to("/dev/full")
    with pytest.raises(MastersError, match=rf"{file}: cannot be written \(.*\)\. Make room") as caught:
        WRITERS[file](tmp_path)
    assert "\n" not in str(caught.value)


def locked(root: Path) -> None:
    with RunDirectory(config(root / "run")).locked():
        pass


@pytest.mark.parametrize(
    ("place", "write"),
    [
        ("run", locked),
        ("tensorboard", a_point),
        ("difficulty", lambda root: questions(root / "difficulty").ask(Rater(SAID))),
        ("step", lambda root: CheckpointWriter(root / "step", rank=0, workers=1, kept=1).save(1, Path.mkdir)),
    ],
)
def test_a_file_where_a_directory_belongs_is_named(place: str, write: Write, tmp_path: Path) -> None:
    (tmp_path / place).write_text("")
    with pytest.raises(MastersError, match=rf"{place}.*: cannot be written \(.*Make room or mend the directory"):
        write(tmp_path)
