import math
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from masters_ray import data
from masters_ray.data import Problems, decode
from masters_ray.errors import DataError
from masters_ray.pipeline import inputs
from tests.builders import png
from tests.sources import good, jsonl, load, parquet


def ids(loaded: Problems) -> list[str]:
    return sorted(problem.id for problem in loaded)


def labels(loaded: Problems) -> list[str]:
    return sorted(problem.label for problem in loaded)


def test_rows_become_problems_with_pictures_relative_to_the_file(tmp_path: Path) -> None:
    row = good(1, choices=["red", "blue"], kind="k", image=["a.png", "a.png"])
    [problem] = load(jsonl(tmp_path, [row]), max_pictures=2)
    assert (problem.id, problem.label, problem.kind, problem.choices) == ("q1", "red", "k", ("red", "blue"))
    assert [decode(picture).size for picture in problem.pictures] == [(64, 64), (64, 64)]
    [without] = load(jsonl(tmp_path, [good(2, image=[])]))
    assert without.pictures == ()
    del row["id"]
    assert ids(load(jsonl(tmp_path, [row]), max_pictures=2)) == [f"{tmp_path}/rows.jsonl:1"]
    for image in ({"bytes": png((8, 8)), "path": None}, png((8, 8))):
        [problem] = load(parquet(tmp_path / "rows.parquet", [{"answer": "a", "image": image}]))
        assert decode(problem.pictures[0]).size == (8, 8)


PICTURE = {"image": "a.png"}
ANSWER = '{"question": "q?", "image": "a.png", "answer": '
BAD: list[tuple[Any, str]] = [
    (good(2, image="none.png"), "none.png does not exist"),
    (good(3, image="x" * 300 + ".png"), "cannot be read: File name too long"),
    (good(4, image="text.png"), "text.png cannot be decoded"),
    (good(5, question="  "), "empty question"),
    *((good(8, image=bad), "image: expected a path, bytes, file") for bad in (3, [["a.png"]])),
    (good(9, image=["a.png", "a.png"]), "2 pictures, expected at most engine.max_pictures = 1"),
    (
        good(11, answer=["a", ["b", "c"]]),
        "answer: expected a single text, number or date, found ['b', 'c']",
    ),
    (good(11, answer=[{"answer": "a", "n": 1}]), "answer: expected texts, found entries with answer, n: add the key"),
    (good(11, answer=[]), "empty answer"),
    (good(11, answer=["red", "blue"], choices=["red", "blue"]), "answer: several right choices"),
    (good(12, kind="\ud83d"), "kind: holds the character NUL or half of a surrogate pair: take it out"),
    (good(13, id="9" * 501), "id: expected at most 500 characters, found 501"),
    ("# a comment", "not JSON in UTF-8 that can be read: Expecting value"),
    ("3", "expected an object, found int"),
    ('{"question": "q?", "question": "r?"}', "one of the keys ['question', 'question'] stands there twice"),
    *((ANSWER + one + "}", "answer: expected a single text, number or date, ") for one in ("NaN", "-Infinity", "true")),
    *((ANSWER + one + "}", "not JSON in UTF-8 that can be read: ") for one in ("9" * 5000, "1e" + "9" * 30)),
    (ANSWER + "[" * 100_000, "not JSON in UTF-8 that can be read: maximum recursion depth"),
    (ANSWER + "null}", "empty answer"),
    (
        {"question": "q?", "answer": "a"},
        "no image; the row has question, answer: set fields.image to the picture's key, to []",
    ),
    (good(15, question="<image> and <image>"), "2 × <image> in the text, but 1 pictures"),
    (good(15, question="<image 2>"), "the text has a place for picture 2, but the row has 1 pictures"),
    (ANSWER + '"\\u2060"}', "empty answer"),
    (ANSWER + '"a\\u0000b"}', "answer: holds the character NUL or half of a surrogate"),
    # Rows of other layouts.
    (
        PICTURE | {"conversations": [{"from": "human", "value": "q?"}]},
        "looks like LLaVA's layout: set fields.turns=conversations",
    ),
    (
        {"images": [], "texts": [{"user": "q?", "assistant": "a"}]},
        "of The Cauldron: set fields.turns=texts, fields.image=i",
    ),
    (PICTURE | {"query": "q?", "label": ["a"]}, "set fields.question=query, fields.answer=label"),
    (good(14, options=["a", "b"]), "options may be meant as choices: set fields.choices=options, or []"),
    (good(14, A="red", B="blue"), "A, B may be meant as choices: set fields.choices=[A, B], or []"),
]


def test_every_bad_row_is_dropped_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    usable = [good(1), good(20, choices=["red", "x"], options=["y"]), good(21, options="[]")]
    loaded = load(jsonl(tmp_path, [*(row for row, _ in BAD), *usable]))
    assert ids(loaded) == ["q1", "q20", "q21"]
    rejected = list(loaded.rejected)
    assert [one.row for one in rejected] == [f"{tmp_path}/rows.jsonl:{number + 1}" for number in range(len(BAD))]
    reasons = [one.reason for one in rejected]
    assert [(told, reason) for (_, told), reason in zip(BAD, reasons, strict=True) if told not in reason] == []
    assert max(map(len, reasons)) < 300


def test_an_answer_in_json_is_what_people_meant(tmp_path: Path) -> None:
    expected = {"3": "3", "4.0": "4", "12.40": "12.40", "1e3": "1000", "-0.0": "0", "1e-7": "0.0000001"}
    expected |= {"1e999999999": "1E+999999999", '" \\n red\\u200b\\ufeff "': "red"}
    expected |= {'"a\u2028b"': "a\u2028b", '"👩\u200d🚀"': "👩\u200d🚀"}
    assert labels(load(jsonl(tmp_path, [ANSWER + one + "}" for one in expected]))) == sorted(expected.values())


@pytest.mark.parametrize(
    ("values", "kind", "expected"),
    [
        ([0.1, 3.0, -0.0, 1e21, math.nan, math.inf, None], pa.float32(), ["0", "0.1", "1" + 21 * "0", "3"]),
        ([0.1, 3.0, 12.4], pa.float64(), ["0.1", "12.4", "3"]),
        ([2**53 + 1, -7], pa.int64(), ["-7", str(2**53 + 1)]),
        ([Decimal("12.40"), Decimal("-1.00")], pa.decimal128(4, 2), ["-1.00", "12.40"]),
        ([datetime(2018, 1, 2), datetime(2018, 1, 2, 3, 4)], pa.timestamp("s"), ["2018-01-02", "2018-01-02 03:04:00"]),
        ([0, 2**60, 1], pa.timestamp("us"), ["1970-01-01", "1970-01-01 00:00:00.000001"]),  # 2**60: after 9999
        ([date(2018, 1, 2)], pa.date32(), ["2018-01-02"]),
        (["a", "b"], pa.dictionary(pa.int32(), pa.string()), ["a", "b"]),
        *((["a", "b"], kind, ["a", "b"]) for kind in (pa.large_string(), pa.string_view())),
        ([b"a", b"\xff"], pa.binary(), ["a"]),
        ([["red"], ["blue", "red", "red"], []], pa.list_(pa.string()), ["red", "red"]),
        ([[0.1], [0.2, 0.1]], pa.list_(pa.float32()), ["0.1", "0.2"]),
    ],
)
def test_a_label_is_what_people_meant_whatever_the_type_of_its_column(
    tmp_path: Path, values: list[Any], kind: pa.DataType, expected: list[str]
) -> None:
    source = parquet(tmp_path / "rows.parquet", [{"answer": value} for value in values], answer=kind)
    assert labels(load(source)) == expected


def test_a_line_that_is_not_utf_8_costs_its_row_and_a_byte_order_mark_and_lines_of_windows_none(tmp_path: Path) -> None:
    lines, file = jsonl(tmp_path, [good(1), good(2)]), tmp_path / "rows.jsonl"
    windows = b"\xef\xbb\xbf\r\n" + file.read_bytes().replace(b"\n", b"\r\n\r\n")
    file.write_bytes(windows + '{"question": "wh\xe4t"}\n'.encode("latin-1"))
    loaded = load(lines)
    [rejected] = loaded.rejected
    assert (ids(loaded), rejected.row) == (["q1", "q2"], f"{file}:6")
    assert rejected.reason.startswith("not JSON in UTF-8 that can be read: 'utf-8' codec can't decode byte")


def test_a_row_whose_text_holds_a_special_token_is_dropped_with_its_name(tmp_path: Path) -> None:
    bad = {
        "question: '<|image_pad|>'": good(1, question="<|image_pad|> what is it?"),
        "answer: '<|im_end|>'": good(2, answer="red<|im_end|>"),
        "choices: '<|im_end|>'": good(3, choices=["red", "<|IM_END|>", "a<|im_end|>b"]),
        "question: '<|im_end|>'": good(4, question="\uff1c|im_end|\uff1e full width"),
    }
    rows = [*bad.values(), good(5, question="<|im_\nend|> {{ 7 * 7 }} <|IM_END|>")]
    loaded = load(jsonl(tmp_path, rows), special=r"<\|image_pad\|>|<\|im_end\|>")
    assert ids(loaded) == ["q5"]
    assert [(one.kind, one.reason.split(" is a ")[0]) for one in loaded.rejected] == [("text", told) for told in bad]
    assert len(load(jsonl(tmp_path, rows))) == 5


def test_rows_with_the_id_of_an_earlier_one_are_kept_under_their_row_number_and_told(tmp_path: Path) -> None:
    loaded = load(jsonl(tmp_path, [good(1, id=one) for one in (7, "7", 7.0, "", True, "7#2")]))
    assert ids(loaded) == sorted(["7", "7#2", "7#3", f"{tmp_path}/rows.jsonl:4", "True", "7#8"])
    told = "2 questions have the id of an earlier one, which was made unique by their numbers (7#3)"
    assert loaded.remarks == [told]


def test_columns_that_are_not_used_are_told(tmp_path: Path) -> None:
    assert load(jsonl(tmp_path, [good(1, hint="x", weight=2)])).remarks == ["columns that are not used: hint, weight"]
    [remark] = load(jsonl(tmp_path, [good(1, **{"\ud83d\n\x1b[2J" + "x" * 999: 1})])).remarks
    assert remark.startswith("columns that are not used: ���[2Jxxx") and len(remark) < 350


def test_kinds_are_texts_and_too_many_of_them_are_told(tmp_path: Path) -> None:
    rows = [good(number, kind=number) for number in range(51)]
    assert load(jsonl(tmp_path, rows[:50])).remarks == []
    [remark] = load(jsonl(tmp_path, rows)).remarks
    assert remark.startswith("51 kinds of question, too many to compare")
    kinds = [good(number, kind=kind) for number, kind in enumerate([None, 3, 3.0, ["x"], ""])]
    assert sorted(one.kind for one in load(jsonl(tmp_path, kinds))) == ["3", "3", "all", "all", "x"]


def test_more_bad_rows_than_allowed_stop_with_each_reason_once_and_no_value_floods_it(tmp_path: Path) -> None:
    source = jsonl(tmp_path, [good(1), good(2, image="none.png")])
    told = r"1 of 2 rows cannot be used; .*allows 0\.1 (.|\n)*1 × picture .*none.png does not exist \(.*rows.jsonl:2\)"
    with pytest.raises(DataError, match=told):
        load(source, 0.1)
    rows = [{"question": "q?", "answer": ["x" * 10**6, {}], "image": "a.png", "z" * 10**5: 1}] * 3
    with pytest.raises(DataError, match=r"no row can be used. 3 × answer: expected texts, found entries") as error:
        load(jsonl(tmp_path, rows))
    with pytest.raises(DataError, match=r"(?s)4 of 5 rows.*  3 × answer: expected.*\n  columns that are not") as other:
        load(jsonl(tmp_path, [*rows, good(1, answer=""), good(2)]), 0.1)
    assert len(str(error.value)) + len(str(other.value)) < 1500


def test_reading_ends_early_where_no_row_can_be_used(tmp_path: Path) -> None:
    rows = [good(number, answer="") for number in range(3000)]
    with pytest.raises(DataError, match="none of the first 1000 questions can be used, .*:1000: empty"):
        load(jsonl(tmp_path, rows))


def test_held_out_questions_that_are_training_questions_are_counted_by_words_and_pictures(tmp_path: Path) -> None:
    def problems(*questions: tuple[str, bytes]) -> data.Problems:
        rows = [{"id": str(n), "question": q, "image": shown, "answer": "a"} for n, (q, shown) in enumerate(questions)]
        return load(parquet(tmp_path / "rows.parquet", rows))

    first, second, third = png(), png((8, 8)), png((9, 9))
    train = problems(("What is it?", first), ("where?", second))
    held_out = problems((" what is IT", first), ("what is it?", second), ("where?", third), ("who?", first))
    assert data.overlap(train, held_out) == data.Overlap(same_question=1, same_picture=2, examples=["0"])
    assert data.overlap(train, train).same_question == 2


def test_what_a_person_should_know_of_the_data_is_said_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    held_out = load(jsonl(tmp_path, [good(1, hint="x"), good(2)]))
    inputs.report_loaded(load(jsonl(tmp_path, [good(1), good(3), good(4, answer="")])), held_out)
    assert capsys.readouterr().out.splitlines() == [
        "warning: 2 training questions, 1 rows set aside",
        "2 held-out questions",
        "warning: held-out questions: columns that are not used: hint",
        "warning: held-out questions that stand in training too, with the same pictures: 1 of 2; accuracy on them says "
        "what the student remembers (q1)",
        "warning: held-out questions about pictures that stand in training with other questions: 1 of 2",
    ]
