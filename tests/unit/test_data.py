import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from masters_ray import data
from masters_ray.config import DataSource
from masters_ray.data import Loaded, decode, write_quarantine
from masters_ray.errors import DataError
from tests.builders import png
from tests.sources import good, jsonl

Load = Callable[..., Loaded]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """``data.load`` with a spool of its own for each call."""
    numbers = itertools.count()

    def loaded(source: DataSource, seed: int, share: float, **more: Any) -> Loaded:
        return data.load(source, seed, share, **more, spool=tmp_path / "spools" / f"{next(numbers)}.arrow")

    return loaded


def ids(loaded: Loaded) -> list[str]:
    return [problem.id for problem in loaded.problems]


def test_rows_become_problems_with_pictures_relative_to_the_file(tmp_path: Path, load: Load) -> None:
    source = jsonl(tmp_path, [good(1, choices=["red", "blue"], kind="k", image=["a.png", "a.png"])])
    problem = load(source, 0, 0.0, max_pictures=2).problems[0]
    assert (problem.id, problem.label, problem.kind, problem.choices) == ("q1", "red", "k", ("red", "blue"))
    assert [decode(picture).size for picture in problem.pictures] == [(64, 64), (64, 64)]


def test_a_row_without_id_is_named_by_its_line(tmp_path: Path, load: Load) -> None:
    row = good(1)
    del row["id"]
    assert ids(load(jsonl(tmp_path, [row]), 0, 0.0)) == [f"{tmp_path}/rows.jsonl:1"]


def test_parquet_rows_hold_bytes_or_the_struct_of_bytes_and_path(tmp_path: Path, load: Load) -> None:
    rows = [
        {"question": "q?", "answer": "a", "image": {"bytes": png(), "path": None}},
        {"question": "r?", "answer": "a", "image": {"bytes": png((8, 8)), "path": None}},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    loaded = load(DataSource(format="parquet", path=str(tmp_path / "rows.parquet")), 0, 0.0)
    assert sorted(decode(problem.pictures[0]).size for problem in loaded.problems) == [(8, 8), (64, 64)]


def test_the_order_is_a_shuffle_that_the_seed_decides(tmp_path: Path, load: Load) -> None:
    source = jsonl(tmp_path, [good(number) for number in range(20)])
    first, again, other = (ids(load(source, seed, 0.0)) for seed in (1, 1, 2))
    assert first == again
    assert first != other
    assert sorted(first) == sorted(other)


def test_kinds_are_taken_in_turn_when_rows_are_limited(tmp_path: Path, load: Load) -> None:
    rows = [good(number, kind="rare" if number < 3 else "common") for number in range(20)]
    source = jsonl(tmp_path, rows)
    source.rows = 8
    kinds = [problem.kind for problem in load(source, 0, 0.0).problems]
    assert (kinds.count("rare"), kinds.count("common")) == (3, 5)


def test_every_bad_row_is_set_aside_with_its_reason(tmp_path: Path, load: Load) -> None:
    (tmp_path / "broken.png").write_bytes(png()[:20])
    (tmp_path / "text.png").write_text("no picture")
    rows = [
        good(1),
        good(2, image="none.png"),
        good(3, image="broken.png"),
        good(4, image="text.png"),
        good(5, question="  "),
        good(6, answer=""),
        {"question": "no answer?", "image": "a.png"},
        "{not json",
        good(1),
        good(7, image=[]),
        good(8, image=3),
        "[1]",
        good(9, image=["a.png", "a.png"]),
        good(10, choices="yes,no"),
        good(11, answer=["a"]),
        good(12, kind="\ud83d"),
    ]
    loaded = load(jsonl(tmp_path, rows), 0, 1.0)
    assert ids(loaded) == ["q1"]
    reasons = {rejected.row.rpartition(":")[2]: rejected.reason for rejected in loaded.rejected}
    assert "none.png does not exist" in reasons["2"]
    assert "broken.png cannot be decoded" in reasons["3"]
    assert "text.png cannot be decoded" in reasons["4"]
    assert (reasons["5"], reasons["6"]) == ("empty question", "empty answer")
    assert reasons["7"].startswith("no answer")
    assert reasons["8"].startswith("not JSON in UTF-8")
    assert "ids must be unique" in reasons["9"]
    assert reasons["10"] == "no picture"
    assert "found int" in reasons["11"]
    assert "found list" in reasons["12"]
    assert reasons["14"] == "choices: expected a list, found str"
    assert reasons["15"] == "answer: expected a text, found list"
    assert reasons["16"] == "kind: expected Unicode, found half of a surrogate pair"
    assert reasons["13"] == "2 pictures; the engines take 1 (engine.max_pictures)"


def test_a_byte_that_is_not_utf_8_and_a_byte_order_mark_cost_at_most_their_row(tmp_path: Path, load: Load) -> None:
    source = jsonl(tmp_path, [good(1), good(2)])
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes() + b'{"question": "\xff"}\n')
    loaded = load(source, 0, 1.0)
    assert sorted(ids(loaded)) == ["q1", "q2"]
    assert "rows.jsonl:3" in loaded.rejected[0].row


def test_more_bad_rows_than_allowed_stop_with_the_first_examples(tmp_path: Path, load: Load) -> None:
    source = jsonl(tmp_path, [good(1), good(2, image="none.png")])
    with pytest.raises(
        DataError, match=r"1 of 2 rows cannot be used(.|\n)*rows.jsonl:2: picture .*none.png does not exist"
    ):
        load(source, 0, 0.1)


def test_a_missing_file_and_a_file_of_another_kind_are_named(tmp_path: Path, load: Load) -> None:
    with pytest.raises(DataError, match="none.jsonl: expected a jsonl file"):
        load(DataSource(path=str(tmp_path / "none.jsonl")), 0, 0.0)
    (tmp_path / "rows.parquet").write_text("no")
    with pytest.raises(DataError, match="expected a parquet file"):
        load(DataSource(format="parquet", path=str(tmp_path / "rows.parquet")), 0, 0.0)
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(DataError, match="found none"):
        load(DataSource(path=str(tmp_path / "empty.jsonl")), 0, 1.0)


def test_the_quarantine_file_has_a_row_for_each(tmp_path: Path, load: Load) -> None:
    loaded = load(jsonl(tmp_path, [good(1), good(2, answer=" ")]), 0, 1.0)
    write_quarantine(tmp_path / "quarantine.jsonl", loaded.rejected)
    assert json.loads((tmp_path / "quarantine.jsonl").read_text()) == {
        "row": f"{tmp_path}/rows.jsonl:2",
        "reason": "empty answer",
        "kind": "row",
    }


def test_a_row_whose_text_holds_a_special_token_is_set_aside_with_its_name(tmp_path: Path, load: Load) -> None:
    rows = [
        good(1, question="<|image_pad|> what is it?"),
        good(2, answer="red<|im_end|>"),
        good(3, choices=["red", "<|IM_END|>", "a<|im_end|>b"]),
        good(4, question="\uff1c|im_end|\uff1e full width"),
        good(5, question="<|im_\nend|> {{ 7 * 7 }} <|IM_END|>"),
    ]
    loaded = load(jsonl(tmp_path, rows), 0, 1.0, special=r"<\|image_pad\|>|<\|im_end\|>")
    assert ids(loaded) == ["q5"]
    assert {one.kind for one in loaded.rejected} == {"text"}
    assert [one.reason.split(" is a ")[0] for one in loaded.rejected] == [
        "question: '<|image_pad|>'",
        "answer: '<|im_end|>'",
        "choice 3: '<|im_end|>'",
        "question: '<|im_end|>'",
    ]
    assert len(load(jsonl(tmp_path, rows), 0, 1.0).problems) == 5
