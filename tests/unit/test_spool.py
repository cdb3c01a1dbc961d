import os
import random
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from masters_ray import data
from masters_ray.config import DataSource
from masters_ray.data import NO_SPECIAL, PILLOW_MAX_PIXELS, Problems, loading
from masters_ray.errors import DataError
from masters_ray.pipeline import inputs
from masters_ray.records import Problem, Rejected
from tests.builders import png
from tests.sources import good, jsonl, parquet

Load = Callable[..., Problems]


def in_memory(source: DataSource, seed: int) -> list[Problem]:
    """The seeded order as the definition says it: shuffle everything, then take the kinds in turn."""
    outcomes = [one.outcome for one in loading.SourceReader(source, 1, PILLOW_MAX_PIXELS, NO_SPECIAL).read()]
    problems = [one for one in outcomes if not isinstance(one, Rejected)]
    random.Random(seed).shuffle(problems)
    by_kind: dict[str, list[int]] = defaultdict(list)
    for index, problem in enumerate(problems):
        by_kind[problem.kind].append(index)
    turns = zip_longest(*(by_kind[kind] for kind in sorted(by_kind)))
    taken = [index for turn in turns for index in turn if index is not None]
    return [problems[index] for index in sorted(taken[: source.rows])]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """``data.load``, every time into the same spool."""

    def loaded(source: DataSource, seed: int = 0, share: float = 1.0, **more: Any) -> Problems:
        return data.load([source], seed, share, spool=tmp_path / "data" / "train.spool", **more)

    return loaded


def no_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on a source that is read is an error."""
    monkeypatch.setattr(loading.SourceReader, "read", lambda *_: pytest.fail("the source is read"))


@pytest.mark.parametrize("rows", [None, 1, 7, 333, 699, 700])
@pytest.mark.parametrize("seed", [0, 3])
def test_the_order_is_that_of_a_shuffle_in_memory(tmp_path: Path, load: Load, rows: int | None, seed: int) -> None:
    kinds = random.Random(5).choices(["common", "b", "a", "rare", "once"], [500, 60, 50, 6, 1], k=700)
    source = jsonl(tmp_path, [good(n, kind=kind, choices=["red", "ä"][: n % 2 * 2]) for n, kind in enumerate(kinds)])
    source.rows = rows
    assert list(load(source, seed)) == in_memory(source, seed)


def test_positions_and_slices_are_those_of_a_list_also_from_many_threads(tmp_path: Path, load: Load) -> None:
    rows = [{"answer": "a", "image": [{"bytes": png((n % 50 + 1, 8)), "path": None}]} for n in range(500)]
    source = parquet(tmp_path / "rows.parquet", rows)
    problems, every = load(source), in_memory(source, 0)
    assert (len(problems), problems[-1]) == (500, every[-1])
    for part in ((-5, None), (0, 500, 99), (490, 520), (9, 3), (5, 1, -1)):
        assert problems[slice(*part)] == every[slice(*part)]
    for look in (problems.__getitem__, problems.digest):
        with pytest.raises(IndexError):
            look(500)
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(problems.__getitem__, range(500))) == every
    assert [problems.digest(position) for position in range(500)] == [one.digest for one in every]


def test_a_finished_spool_is_opened_unread(tmp_path: Path, load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    source = jsonl(tmp_path, [*(good(number, hint=1) for number in range(20)), good(20, answer=" ")])
    first = load(source, share=0.05)
    no_reading(monkeypatch)
    again = load(source, share=0.05)
    assert (len(again), list(again)) == (20, list(first))
    assert all(getattr(again, name) == getattr(first, name) for name in ("accepted", "sources", "changes", "remarks"))
    assert list(again.rejected) == list(first.rejected)
    with pytest.raises(DataError, match=r"1 of 21 rows cannot be used; .*allows 0.01"):
        load(source, share=0.01)


@pytest.mark.parametrize("change", [{"seed": 1}, {"max_pictures": 2}, {"max_pixels": 5000}, {"rows": 5}, {"touch": 1}])
def test_whatever_decides_the_content_makes_the_spool_anew(
    tmp_path: Path, load: Load, monkeypatch: pytest.MonkeyPatch, change: dict
) -> None:
    source = jsonl(tmp_path, [good(number) for number in range(20)])
    load(source)
    source.rows = change.pop("rows", None)
    if change.pop("touch", None):
        os.utime(source.path or "", ns=(0, 0))
    no_reading(monkeypatch)
    with pytest.raises(pytest.fail.Exception, match="the source is read"):
        load(source, **change)


def test_a_damaged_spool_is_named_and_made_again(tmp_path: Path, load: Load) -> None:
    source, file = jsonl(tmp_path, [good(number) for number in range(600)]), tmp_path / "data" / "train.spool"
    expected, whole = list(load(source)), file.read_bytes()
    for damaged in (b"", b"no spool" * 999, *(whole[: n * len(whole) // 1000] for n in (1, 500, 999))):
        file.write_bytes(damaged)
        with pytest.raises(DataError, match=r"train.spool: expected problems .* Delete it to make it again"):
            Problems(file)
        assert list(load(source)) == expected


def test_what_happened_to_pictures_between_two_calls_is_noticed(
    tmp_path: Path, load: Load, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    images = ["kept", "changed", "vanished", "missing", "broken"]
    rows = [good(number, id=f"{image}#{number}", image=f"{image}.png") for number in range(4) for image in images]
    source = jsonl(tmp_path, rows)
    for name in ("kept", "changed", "vanished"):
        (tmp_path / f"{name}.png").write_bytes(png())
    (tmp_path / "broken.png").write_bytes(png()[:100])
    before = {one.id: one.digest for one in load(source)}
    assert {id.partition("#")[0] for id in before} == {"kept", "changed", "vanished"}
    (tmp_path / "vanished.png").unlink()
    for name, colour in {"changed": (0, 0, 0), "missing": (9, 9, 9), "broken": (9, 9, 9)}.items():
        (tmp_path / f"{name}.png").write_bytes(png(colour=colour))
    loaded = load(source)
    after = {one.id: one.digest for one in loaded}
    assert {one.reason for one in loaded.rejected} == {f"picture {tmp_path}/vanished.png does not exist"}
    assert {id.partition("#")[0] for id in after if after[id] != before.get(id)} == {"changed", "missing", "broken"}
    assert [id for id in after if id in before] == [id for id in before if "vanished" not in id], "the same order"
    assert capsys.readouterr().out.count("pictures have changed since its rows were read") == 1
    no_reading(monkeypatch)
    assert [one.digest for one in load(source)] == list(after.values())


def test_what_was_done_to_pictures_is_counted_and_said_by_every_call(
    tmp_path: Path, load: Load, capsys: pytest.CaptureFixture
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGBA", (8, 8)).save(tmp_path / "clear.png")
    Image.new("RGB", (8, 4)).save(tmp_path / "turned.jpg", exif=exif)
    images = ("clear.png", "clear.png", "turned.jpg", "a.png")
    source = jsonl(tmp_path, [good(number, image=image) for number, image in enumerate(images)])
    for _ in range(2):
        loaded = load(source)
        inputs.report_loaded(loaded, loaded)
        assert "training pictures: 2 transparent and put on white, 1 turned upright\n" in capsys.readouterr().out
        assert loaded.mended == ["pictures: 2 transparent and put on white, 1 turned upright"]
