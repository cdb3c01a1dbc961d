import sys
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from examples import easy_vqa
from masters_ray import data
from masters_ray.config import DataSource
from masters_ray.data.pictures import encoded
from masters_ray.errors import DataError


def test_test_problems_are_what_they_always_were() -> None:
    problems = easy_vqa.problems("test")
    assert problems == easy_vqa.problems("test")
    assert Counter(problem.kind for problem in problems) == {"colour": 790, "shape": 763, "place": 728}
    assert len({problem.id for problem in problems}) == len(problems)
    first = problems[0]
    assert (first.id, first.label, first.kind) == ("test/0/colour", "red", "colour")
    assert first.question == "what is the color of the triangle?"
    assert encoded(first.pictures[0]).startswith(b"\x89PNG")
    assert all(problem.label in easy_vqa.LABELS[problem.kind] for problem in problems)
    numbers = [int(problem.id.split("/")[1]) for problem in problems]
    assert numbers == sorted(numbers)
    places = easy_vqa.problems("test", ["place"])
    assert places == [problem for problem in problems if problem.kind == "place"]
    assert {problem.question for problem in places} == set(easy_vqa.PLACE_QUESTIONS)
    assert min(Counter(problem.label for problem in places).values()) > 100


def test_the_place_is_that_of_the_shape_in_any_corner() -> None:
    boxes = {(0, 0, 10, 10): "top left", (50, 2, 60, 12): "top right", (4, 40, 30, 60): "bottom left"}
    boxes |= {(33, 33, 63, 63): "bottom right", (36, 36, 36, 36): "bottom right"}
    nowhere = [(30, 0, 40, 10), (0, 24, 10, 34), (35, 40, 35, 40)]
    assert {box: easy_vqa.place_of(box) for box in [*boxes, *nowhere]} == boxes | dict.fromkeys(nowhere)
    picture = Image.new("RGB", (64, 64), (240, 250, 240))
    picture.paste((0, 0, 255), (0, 0, 12, 7))
    assert easy_vqa.shape_box(picture) == (0, 0, 12, 7)
    with pytest.raises(DataError, match="flat colour"):
        easy_vqa.shape_box(Image.new("RGB", (64, 64), (240, 250, 240)))


def test_unknown_names_and_a_missing_package_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="yesno"):
        easy_vqa.problems("test", ["colour", "yesno"])
    with pytest.raises(DataError, match="split"):
        easy_vqa.problems("validation")  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "easy_vqa", None)
    with pytest.raises(DataError, match="pip install easy-vqa"):
        easy_vqa.problems("test")


def test_the_shipped_questions_are_those_of_the_package() -> None:
    """In the same order, from which a run's seeded order comes, with the same pictures."""
    shipped = Path(easy_vqa.__file__).parent / "toy" / "questions"
    for split, name in zip(easy_vqa.SPLITS, ("train", "held_out"), strict=True):
        rows = pq.read_table(shipped / f"{name}.parquet").to_pylist()
        keys = ("id", "question", "answer", "kind", "image")
        assert [tuple(row[key] for key in keys) for row in rows] == [
            (one.id, one.question, one.label, one.kind, Path(one.pictures[0].path or "").read_bytes())
            for one in easy_vqa.problems(split)
        ]


def test_the_questions_are_written_as_ordinary_data_and_read_back_the_same(tmp_path: Path) -> None:
    easy_vqa.write(tmp_path / "x")
    easy_vqa.write(tmp_path / "x")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x"]
    source = DataSource(path=str(tmp_path / "x" / "test.jsonl"))
    loaded = data.load([source], 0, 0.0, spool=tmp_path / "spool.sqlite")
    told, expected = (
        {(one.id, one.question, one.label, one.kind, encoded(one.pictures[0])) for one in problems}
        for problems in (loaded, easy_vqa.problems("test"))
    )
    assert told == expected
