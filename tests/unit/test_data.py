import itertools
import json
import math
from collections.abc import Callable
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from masters_ray import data
from masters_ray.config import DataSource
from masters_ray.data import Loaded, decode, write_quarantine
from masters_ray.errors import DataError
from masters_ray.pipeline import inputs
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
        '{"question": "q?", "question": "r?", "answer": "a", "image": "a.png"}',
        good(7, image=[]),
        good(8, image=3),
        "[1]",
        good(9, image=["a.png", "a.png"]),
        good(10, choices="yes,no"),
        good(11, answer=["a", "b"]),
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
    assert reasons["8"].startswith("not JSON: ")
    assert reasons["9"] == "'question' stands there twice: keep one"
    assert reasons["10"] == "image: expected a picture, found an empty list; every question needs one"
    assert reasons["11"] == "image: expected a path or bytes, found 3"
    assert "found list" in reasons["12"]
    assert reasons["14"] == "choices: expected a list of texts, found 'yes,no'"
    assert reasons["15"].startswith("answer: expected a single text, found 2 (['a', 'b'])")
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
    with pytest.raises(DataError, match="rows.parquet: cannot be read: is it damaged, or cut short"):
        load(DataSource(format="parquet", path=str(tmp_path / "rows.parquet")), 0, 0.0)


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


def parquet(file: Path, rows: list[dict[str, Any]], **types: pa.DataType) -> DataSource:
    """A file of those rows with a picture each; columns have the types that are named."""
    table = pa.Table.from_pylist([{"question": "q?", "image": png()} | row for row in rows])
    for name, kind in types.items():
        table = table.set_column(table.schema.get_field_index(name), name, table[name].cast(kind))
    pq.write_table(table, file, row_group_size=2)
    return DataSource(format="parquet", path=str(file))


def labels(loaded: Loaded) -> list[str]:
    return sorted(problem.label for problem in loaded.problems)


@pytest.mark.parametrize(
    ("values", "kind", "expected"),
    [
        ([0.1, 3.0, -0.0, 1e21, math.nan, math.inf, None], pa.float32(), ["0", "0.1", "1" + 21 * "0", "3"]),
        ([0.1, 3.0, 12.4], pa.float64(), ["0.1", "12.4", "3"]),
        ([2**53 + 1, -7], pa.int64(), ["-7", str(2**53 + 1)]),
        ([Decimal("12.40"), Decimal("-1.00")], pa.decimal128(4, 2), ["-1.00", "12.40"]),
        ([datetime(2018, 1, 2), datetime(2018, 1, 2, 3, 4)], pa.timestamp("s"), ["2018-01-02", "2018-01-02 03:04:00"]),
        ([date(2018, 1, 2)], pa.date32(), ["2018-01-02"]),
        (["a", "b"], pa.dictionary(pa.int32(), pa.string()), ["a", "b"]),
        (["a", "b"], pa.large_string(), ["a", "b"]),
        (["a", "b"], pa.string_view(), ["a", "b"]),
        ([b"a", b"\xff"], pa.binary(), ["a"]),
        ([True, False], pa.bool_(), []),
        ([["red"], ["red", "blue"], []], pa.list_(pa.string()), ["red"]),
    ],
)
def test_a_label_is_what_people_meant_whatever_the_type_of_its_column(
    tmp_path: Path, load: Load, values: list[Any], kind: pa.DataType, expected: list[str]
) -> None:
    rows = [{"answer": value} for value in values]
    source = parquet(tmp_path / "rows.parquet", rows, answer=kind)
    if not expected:
        with pytest.raises(DataError, match="answer: True may stand for yes, for true or for 1"):
            load(source, 0, 1.0)
        return
    assert labels(load(source, 0, 1.0)) == expected


def test_text_that_is_not_utf_8_costs_its_row_of_a_parquet_file(tmp_path: Path, load: Load) -> None:
    source = parquet(tmp_path / "rows.parquet", [{"answer": one} for one in (b"red", b"\xff", b"blue")])
    table = pq.read_table(source.path)
    torn = pa.Array.from_buffers(pa.string(), 3, table["answer"].combine_chunks().buffers())
    pq.write_table(table.set_column(table.schema.get_field_index("answer"), "answer", torn), source.path)
    loaded = load(source, 0, 1.0)
    assert labels(loaded) == ["blue", "red"]
    assert loaded.rejected[0].row.endswith("rows.parquet:2")


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("3", "3"),
        ("3.0", "3"),
        ("12.40", "12.40"),
        ("1e3", "1000"),
        ("-0.0", "0"),
        ("1e-7", "0.0000001"),
        ("1e999999999", "1E+999999999"),
        ("NaN", "answer: expected a number, found nan"),
        ("-Infinity", "answer: expected a number, found -inf"),
        ("9" * 5000, "not JSON that can be read: a number has too many digits"),
        ("1e" + "9" * 30, "not JSON that can be read: a number has too many digits"),
        ("[" * 100_000, "not JSON that can be read: too many brackets inside each other"),
        ("true", "answer: True may stand for yes, for true or for 1: write the text that is meant"),
        ("null", "no answer (answer is null); the columns are question, image, answer"),
        ('{"a": 1}', "answer: expected a text or a number, found {'a': 1}"),
        ('" \\n red\\u200b\\ufeff "', "red"),
        ('"\\u2060"', "empty answer"),
        ('"a\\u0000b"', "answer: holds the character NUL: take it out"),
        ('"a\u2028b"', "a\u2028b"),
        ('"👩\u200d🚀"', "👩\u200d🚀"),
        ('"red"},', "not JSON: something stands after the value, at character"),
    ],
)
def test_an_answer_in_json_is_what_people_meant_or_has_a_reason(
    tmp_path: Path, load: Load, written: str, expected: str
) -> None:
    line = '{"question": "q?", "image": "a.png", "answer": ' + written + "}"
    loaded = load(jsonl(tmp_path, [good(1), line, good(2)]), 0, 1.0)
    if len(loaded.problems) == 3:
        assert expected in labels(loaded)
    else:
        [rejected] = loaded.rejected
        assert rejected.reason.startswith(expected)
        assert len(rejected.reason) < 300


def test_rows_with_the_id_of_an_earlier_one_are_kept_under_their_row_number_and_told(
    tmp_path: Path, load: Load
) -> None:
    given = [7, "7", 7.0, "", None, True, "7#2"]
    rows = [good(number, id=one) for number, one in enumerate(given)]
    loaded = load(jsonl(tmp_path, rows), 0, 0.0)
    file = tmp_path / "rows.jsonl"
    assert sorted(ids(loaded)) == sorted(["7", "7#2", "7#3", f"{file}:4", f"{file}:5", "True", "7#2#7"])
    assert loaded.remarks == [
        "3 rows have the id of an earlier one, which was made unique by their row numbers (7#2)",
    ]


def test_columns_that_are_not_used_are_told_also_of_a_source_that_is_opened_again(tmp_path: Path, load: Load) -> None:
    source = jsonl(tmp_path, [good(1, hint="x", weight=2), good(2, hint=None, weight=3)])
    for _ in range(2):
        loaded = data.load(source, 0, 0.0, spool=tmp_path / "s.arrow")
        assert loaded.unused == {"hint": 1, "weight": 2}
        assert loaded.remarks == ["columns that are not used: hint (1 row), weight (2 rows)"]
    odd = load(jsonl(tmp_path, [good(1, **{"\ud83d\n\x1b[2J" + "x" * 999: 1})]), 0, 0.0)
    [remark] = odd.remarks
    assert remark.encode().startswith("columns that are not used: ���[2Jxxx".encode())
    assert len(remark) < 150
    with pytest.raises(DataError, match=r"image: expected .*\nColumns that are not used: hint \(1 row\)"):
        load(jsonl(tmp_path, [good(1, hint="x", image=[["a.png"]])]), 0, 0.0)


def test_a_kind_for_every_row_is_told(tmp_path: Path, load: Load) -> None:
    rows = [good(number, kind=number) for number in range(51)]
    assert load(jsonl(tmp_path, rows[:50]), 0, 0.0).remarks == []
    [remark] = load(jsonl(tmp_path, rows), 0, 0.0).remarks
    assert remark.startswith("51 kinds of question, too many to compare")
    kinds = [good(number, kind=kind) for number, kind in enumerate([None, 3, 3.0, ["x"], ""])]
    assert sorted(one.kind for one in load(jsonl(tmp_path, kinds), 0, 0.0).problems) == ["3", "3", "all", "all", "x"]


def test_equal_reasons_stand_in_a_message_once_and_no_value_floods_it(tmp_path: Path, load: Load) -> None:
    rows = [{"question": "q?", "answer": ["x" * 10**6, "y"], "image": "a.png", "z" * 10**5: 1}] * 3
    with pytest.raises(DataError) as error:
        load(jsonl(tmp_path, rows), 0, 0.0)
    told = str(error.value)
    assert "(and 2 more)" in told
    assert len(told) < 1200


def test_held_out_questions_that_are_training_questions_are_counted_by_words_and_pictures(tmp_path: Path) -> None:
    def spooled(name: str, questions: list[tuple[str, bytes]]) -> data.Problems:
        rows = [{"id": str(number), "question": one, "image": shown} for number, (one, shown) in enumerate(questions)]
        source = parquet(tmp_path / f"{name}.parquet", [row | {"answer": "a"} for row in rows])
        return data.load(source, 0, 0.0, spool=tmp_path / f"{name}.arrow").problems

    first, second, third = png(), png((8, 8)), png((9, 9))
    train = spooled("train", [("What is it?", first), ("where?", second)])
    held_out = spooled("held", [(" what is IT", first), ("what is it?", second), ("where?", third), ("who?", first)])
    assert data.overlap(train, held_out) == data.Overlap(same_question=1, same_picture=2, examples=["0"])
    assert data.overlap(train, train).same_question == 2


def test_what_a_person_should_know_of_the_data_is_said_once(
    tmp_path: Path, load: Load, capsys: pytest.CaptureFixture[str]
) -> None:
    held_out = load(jsonl(tmp_path, [good(1, hint="x"), good(2)]), 0, 0.0)
    train = load(jsonl(tmp_path, [good(1), good(3), good(4, answer="")]), 0, 1.0)
    overlap = inputs.told(train, held_out)
    said = capsys.readouterr()
    lines = [line for line in (said.out + said.err).splitlines() if line.strip()]
    assert [line.partition("] ")[2] or line for line in lines] == [
        "2 training questions, 1 rows set aside",
        "2 held-out questions",
        "held-out questions: columns that are not used: hint (1 row)",
        "held-out questions that stand in training too, with the same pictures: 1 of 2; accuracy on them says what the "
        "student remembers (q1)",
        "held-out questions about pictures that stand in training with other questions: 1 of 2",
    ]
    assert overlap == data.Overlap(same_question=1, same_picture=1, examples=["q1"])
