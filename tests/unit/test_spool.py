import dataclasses
import json
import os
import random
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from masters_ray.config import DataSource
from masters_ray.data import Problems, build, check, load, sources
from masters_ray.errors import DataError
from masters_ray.pipeline import inputs
from masters_ray.records import Problem
from tests.builders import png
from tests.sources import good, jsonl


def in_memory(source: DataSource, seed: int) -> list[Problem]:
    """The seeded order as the definition says it: shuffle everything, then take the kinds in turn."""
    reader = sources.Reader(source)
    found = [reader.problem(row, where) for where, row in sources.rows(source)]
    problems = [
        dataclasses.replace(one, pictures=tuple(check(picture).picture for picture in one.pictures)) for one in found
    ]
    random.Random(seed).shuffle(problems)
    if source.rows is None or source.rows >= len(problems):
        return problems
    by_kind: dict[str, list[int]] = defaultdict(list)
    for index, problem in enumerate(problems):
        by_kind[problem.kind].append(index)
    taken: list[int] = []
    for turn in zip_longest(*(by_kind[kind] for kind in sorted(by_kind))):
        taken += [index for index in turn if index is not None]
    return [problems[index] for index in sorted(taken[: source.rows])]


def kinds(count: int) -> list[dict]:
    names = random.Random(5).choices(["common", "b", "a", "rare", "once"], [500, 60, 50, 6, 1], k=count)
    return [good(number, kind=kind, choices=["red", "ä"][: number % 2 * 2]) for number, kind in enumerate(names)]


def spool(folder: Path) -> Path:
    return folder / "data" / "train.arrow"


def no_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("the source is read")

    monkeypatch.setattr(build, "collect", refuse)


@pytest.mark.parametrize("rows", [None, 1, 3, 7, 100, 333, 698, 699, 700])
@pytest.mark.parametrize("seed", [0, 3])
def test_the_order_is_that_of_a_shuffle_in_memory(tmp_path: Path, rows: int | None, seed: int) -> None:
    source = jsonl(tmp_path, kinds(700))
    source.rows = rows
    problems = load(source, seed, 0.0, spool=spool(tmp_path)).problems
    expected = in_memory(source, seed)
    assert list(problems) == expected
    assert [digest.decode() for digest in problems.digests] == [problem.digest for problem in expected]


def test_embedded_pictures_make_shorter_batches_and_come_back_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "_BATCH_BYTES", 5000)
    monkeypatch.setattr(build, "_COPIED_BYTES", 20000)
    rows = [
        {"id": f"q{n}", "question": "q?", "answer": "a", "image": [{"bytes": png((n % 50 + 1, 8)), "path": None}]}
        for n in range(300)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    source = DataSource(format="parquet", path=str(tmp_path / "rows.parquet"))
    problems = load(source, 0, 0.0, spool=spool(tmp_path)).problems
    assert problems.note.rows_per_batch < 50
    assert list(problems) == in_memory(source, 0)


def test_positions_and_slices_are_those_of_a_list(tmp_path: Path) -> None:
    problems = load(jsonl(tmp_path, kinds(700)), 0, 0.0, spool=spool(tmp_path)).problems
    every = list(problems)
    assert (len(problems), problems[0], problems[-1], problems[256]) == (700, every[0], every[-1], every[256])
    for part in (slice(250, 300), slice(-5, None), slice(0, 700, 99), slice(690, 900), slice(9, 3), slice(5, 1, -1)):
        assert problems[part] == every[part]
    assert problems.digest(-1) == every[-1].digest
    for beyond in (700, -701):
        with pytest.raises(IndexError, match="of 700 problems"):
            problems[beyond]
        with pytest.raises(IndexError, match="of 700 problems"):
            problems.digest(beyond)


def test_a_finished_spool_is_opened_without_reading_the_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = jsonl(tmp_path, [*(good(number) for number in range(20)), good(20, answer=" ")])
    first = load(source, 0, 0.5, spool=spool(tmp_path))
    no_reading(monkeypatch)
    again = load(source, 0, 0.5, spool=spool(tmp_path))
    assert list(again.problems) == list(first.problems)
    assert again.rejected == first.rejected
    with pytest.raises(DataError, match=r"1 of 21 rows cannot be used; .*allows 0.01"):
        load(source, 0, 0.01, spool=spool(tmp_path))


def test_rows_that_were_not_taken_count_among_those_that_can_be_used(tmp_path: Path) -> None:
    source = jsonl(tmp_path, [*(good(number) for number in range(20)), good(20, answer=" ")])
    source.rows = 1
    for _ in range(2):
        assert len(load(source, 0, 0.05, spool=spool(tmp_path)).problems) == 1


@pytest.mark.parametrize("change", [{"seed": 1}, {"max_pictures": 2}, {"max_pixels": 5000}, {"rows": 5}, {"touch": 1}])
def test_whatever_decides_the_content_makes_the_spool_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict
) -> None:
    source = jsonl(tmp_path, [good(number) for number in range(20)])
    load(source, 0, 0.0, spool=spool(tmp_path))
    source.rows = change.pop("rows", None)
    if change.pop("touch", None):
        os.utime(source.path or "", ns=(0, 0))
    no_reading(monkeypatch)
    with pytest.raises(AssertionError, match="the source is read"):
        load(source, change.pop("seed", 0), 0.0, spool=spool(tmp_path), **change)


def test_a_changed_source_is_read_again(tmp_path: Path) -> None:
    load(jsonl(tmp_path, [good(1)]), 0, 0.0, spool=spool(tmp_path))
    problems = load(jsonl(tmp_path, [good(1), good(2)]), 0, 0.0, spool=spool(tmp_path)).problems
    assert sorted(problem.id for problem in problems) == ["q1", "q2"]


@pytest.mark.parametrize("left", [0, 100, 0.5, 0.999])
def test_a_damaged_spool_is_made_again(tmp_path: Path, left: float) -> None:
    source = jsonl(tmp_path, [good(number) for number in range(600)])
    expected = list(load(source, 0, 0.0, spool=spool(tmp_path)).problems)
    content = spool(tmp_path).read_bytes()
    spool(tmp_path).write_bytes(content[: int(left * len(content)) if left < 1 else int(left)])
    assert list(load(source, 0, 0.0, spool=spool(tmp_path)).problems) == expected


def test_another_arrow_file_in_its_place_is_made_again(tmp_path: Path) -> None:
    source = jsonl(tmp_path, [good(1)])
    load(source, 0, 0.0, spool=spool(tmp_path))
    table = pa.table({"x": [1]})
    with pa.ipc.new_file(str(spool(tmp_path)), table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(DataError, match=r"train.arrow: expected problems .* Delete it to make it again"):
        Problems(spool(tmp_path))
    assert len(load(source, 0, 0.0, spool=spool(tmp_path)).problems) == 1


def test_a_build_that_fails_or_was_killed_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = jsonl(tmp_path, [good(number) for number in range(20)])

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(build, "copy", stop)
        with pytest.raises(KeyboardInterrupt):
            load(source, 0, 0.0, spool=spool(tmp_path))
    assert list(spool(tmp_path).parent.iterdir()) == []
    for name in ("train.arrow.tmp", "train.arrow.rows.tmp", "train.pictures.tmp"):
        (spool(tmp_path).parent / name).write_text("what a kill left")
    load(source, 0, 0.0, spool=spool(tmp_path))
    assert {file.name for file in spool(tmp_path).parent.iterdir()} == {"train.arrow", "train.pictures"}


def test_a_spool_that_cannot_be_written_is_a_data_error(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("no directory")
    with pytest.raises(DataError, match=r"cannot be written .*Make room or mend the directory"):
        load(jsonl(tmp_path, [good(1)]), 0, 0.0, spool=spool(tmp_path))


def test_five_thousand_problems_are_read_at_random_and_by_many_threads(tmp_path: Path) -> None:
    source = jsonl(tmp_path, kinds(5000))
    problems = load(source, 0, 0.0, spool=spool(tmp_path)).problems
    expected = in_memory(source, 0)
    starts = random.Random(0).choices(range(5000), k=400)
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda start: problems[start : start + 8], starts))
    assert found == [expected[start : start + 8] for start in starts]
    assert [problems[position] for position in starts] == [expected[position] for position in starts]
    assert [problems.digest(position) for position in starts] == [expected[position].digest for position in starts]


def test_rows_with_broken_pictures_are_set_aside_when_the_data_are_read(tmp_path: Path) -> None:
    (tmp_path / "short.png").write_bytes(png()[:100])
    source = jsonl(tmp_path, [good(1, image="short.png"), good(2, image="none.png"), good(3)])
    loaded = load(source, 0, 1.0, max_pixels=64 * 64, spool=spool(tmp_path))
    assert [problem.id for problem in loaded.problems] == ["q3"]
    assert [(one.kind, one.reason) for one in loaded.rejected] == [
        ("picture", f"picture {tmp_path}/short.png cannot be decoded: Truncated File Read"),
        ("picture", f"picture {tmp_path}/none.png does not exist"),
    ]
    with pytest.raises(DataError, match=r"a.png has 64 x 64 pixels; data.max_picture_pixels allows 4095"):
        load(source, 0, 1.0, max_pixels=64 * 64 - 1, spool=spool(tmp_path))


def test_what_happened_to_a_picture_between_two_calls_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    rows = [*(good(number) for number in range(30)), *(good(30 + n, image=f"{n}.png") for n in range(4))]
    for name, content in (("0", png()), ("1", png()), ("3", png()[:100])):
        (tmp_path / f"{name}.png").write_bytes(content)
    source = jsonl(tmp_path, rows)
    first = load(source, 0, 1.0, spool=spool(tmp_path)).problems
    before = {one.id: one.digest for one in first}
    order = list(before)
    assert {"q30", "q31"} < set(order) == {row["id"] for row in rows} - {"q32", "q33"}

    (tmp_path / "0.png").write_bytes(png(colour=(0, 0, 0)))  # changed
    (tmp_path / "1.png").unlink()  # vanished
    for number in "23":  # mended
        (tmp_path / f"{number}.png").write_bytes(png())
    loaded = load(source, 0, 1.0, spool=spool(tmp_path))
    after = {one.id: one.digest for one in loaded.problems}
    assert [one.reason for one in loaded.rejected] == [f"picture {tmp_path}/1.png does not exist"]
    assert set(after) == {row["id"] for row in rows} - {"q31"}
    assert [name for name in after if after[name] != before.get(name)] == [
        name for name in after if name in ("q30", "q32", "q33")
    ]
    assert [name for name in after if name in order] == [name for name in order if name != "q31"]
    assert capsys.readouterr().out.count("pictures have changed since its rows were read") == 1
    no_reading(monkeypatch)
    assert [one.digest for one in load(source, 0, 1.0, spool=spool(tmp_path)).problems] == list(after.values())


def test_what_was_done_to_pictures_is_counted_and_said_by_every_call(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    Image.new("RGBA", (8, 8)).save(tmp_path / "clear.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (8, 4)).save(tmp_path / "turned.jpg", exif=exif)
    rows = [good(1, image="clear.png"), good(2, image="clear.png"), good(3, image="turned.jpg"), good(4)]
    source = jsonl(tmp_path, rows)
    for _ in range(2):
        loaded = load(source, 0, 1.0, spool=spool(tmp_path))
        assert loaded.changes == {"on_white": 2, "turned": 1}
        inputs.told(loaded, loaded)
        assert "training pictures: 2 transparent and put on white, 1 turned upright\n" in capsys.readouterr().out


def test_what_a_spool_notes_comes_back(tmp_path: Path) -> None:
    source = jsonl(tmp_path, [good(1), good(2, answer="")])
    note = load(source, 0, 1.0, spool=spool(tmp_path)).problems.note
    metadata = {key: value.encode() for key, value in note.as_metadata().items()}
    assert type(note).of(metadata) == note
    assert json.dumps(dataclasses.asdict(note)).count("empty answer") == 1
