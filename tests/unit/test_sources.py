"""Sources in the layouts, files and places of public data sets, each made here."""

import base64
import csv
import gzip
import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import fs

from masters_ray.config import DataSource, RowFields
from masters_ray.data import check, count, loading
from masters_ray.data.mixture import balanced, quotas, seeded
from masters_ray.data.places import tables
from masters_ray.errors import DataError
from masters_ray.records import Picture, Problem
from tests.builders import png
from tests.sources import good, jsonl, load

PNG = {"bytes": png(), "path": None}
HUMAN, MODEL = {"from": "human"}, {"from": "gpt"}


def described(path: Path, **more: Any) -> DataSource:
    """A source with ``fields`` as they are written in a configuration."""
    fields = {key: value if isinstance(value, list) or key == "turns" else [value] for key, value in more.items()}
    own = {
        key: more[key]
        for key in ("turns_taken", "answer_is", "images", "name", "rule", "suffix", "split")
        if key in more
    }
    layout: dict[str, Any] = {key: value for key, value in fields.items() if key not in own}
    return DataSource(path=str(path), fields=RowFields(**layout), turns=own.pop("turns_taken", "first"), **own)


def written(folder: Path, *rows: dict[str, Any]) -> Path:
    (folder / "a.png").write_bytes(png())
    (folder / "b.png").write_bytes(png((8, 8)))
    pq.write_table(pa.Table.from_pylist(list(rows)), folder / "rows.parquet")
    return folder / "rows.parquet"


def only(source: DataSource, **more: Any) -> Problem:
    [problem] = load(source, 0.0, max_pictures=4, **more)
    return problem


DIALOGUE = [HUMAN | {"value": "<image>\nWhat colour?"}, MODEL | {"value": "red"}]
SECOND = [HUMAN | {"value": "What shape?"}, MODEL | {"value": "square"}]
ROWS: list[tuple[dict[str, Any], dict[str, Any], tuple[str, str]]] = [
    ({"image": PNG, "conversations": DIALOGUE}, {"turns": "conversations"}, ("What colour?", "red")),
    (
        {"images": [PNG], "texts": [{"user": "What colour?", "assistant": "Red.", "source": "VQAv2"}]},
        {"turns": "texts", "image": "images", "kind": "texts.source"},
        ("What colour?", "Red."),
    ),
    (
        {
            "images": [PNG],
            "messages": [{"role": "user", "content": "<image>q?"}, {"role": "assistant", "content": "a"}],
        },
        {"turns": "messages", "image": "images"},
        ("q?", "a"),
    ),
    ({"image": PNG, "qa": [{"question": "How many?", "answer": "2"}]}, {"turns": "qa"}, ("How many?", "2")),
    ({"image": PNG, "query": "q?", "label": ["14"]}, {"question": "query", "answer": "label"}, ("q?", "14")),
    (
        {"image": PNG, "hint": "It is cold.", "question": "q?", "choices": ["n", "s"], "answer": 1},
        {"question": ["hint", "question"], "answer_is": "index"},
        ("It is cold.\nq?", "s"),
    ),
    (
        {"image": PNG, "question": "q?", "options": "['x', 'y']", "answer": "B"},
        {"choices": "options", "answer_is": "letter"},
        ("q?", "y"),
    ),
    (
        {"image": PNG, "question": "q?", "A": "x", "B": "y", "C": None, "answer": "B"},
        {"choices": ["A", "B", "C"]},
        ("q?", "y"),
    ),
    (
        {"image_1": PNG, "image_2": None, "question": "q?", "answer": "a"},
        {"image": ["image_1", "image_2"]},
        ("q?", "a"),
    ),
    ({"image": PNG, "question": "q?", "meta": {"gold": {"text": "a"}}}, {"answer": "meta.gold.text"}, ("q?", "a")),
]


@pytest.mark.parametrize(("row", "fields", "expected"), ROWS)
def test_a_described_layout_is_read(
    tmp_path: Path, row: dict[str, Any], fields: dict[str, Any], expected: tuple[str, str]
) -> None:
    problem = only(described(written(tmp_path, row), **fields))
    assert (problem.question, problem.label) == expected
    assert len(problem.pictures) == 1


@pytest.mark.parametrize(("row", "fields"), [(row, fields) for row, fields, _ in ROWS])
def test_a_layout_that_is_not_described_is_refused_with_what_to_set(
    tmp_path: Path, row: dict[str, Any], fields: dict[str, Any]
) -> None:
    with pytest.raises(DataError, match=r"rows.parquet: no row can be used. 1 × ") as error:
        load(described(written(tmp_path, row)))
    names = [key for key in ("turns", "question", "answer", "choices") if key in fields]
    if "hint" not in row and "meta" not in row and "image_1" not in row:
        assert all(f"fields.{name}=" in str(error.value) for name in names)


def test_answers_of_several_people_are_references_and_the_most_frequent_is_the_label(tmp_path: Path) -> None:
    answers = [{"answer": said, "answer_confidence": "yes"} for said in ("net", "fence", "net ", "mesh")]
    row = {"image": PNG, "question": "q?", "answers": answers}
    problem = only(described(written(tmp_path, row), answer="answers.answer", rule="vqa"))
    assert (problem.label, problem.references, problem.rule) == ("net", ("net", "fence", "net", "mesh"), "vqa")


def test_every_turn_is_a_question_with_the_pictures_shown_until_then(tmp_path: Path) -> None:
    third = [HUMAN | {"value": "And <image> this?"}, MODEL | {"value": "blue"}]
    row = {"id": "7", "image": ["a.png", "b.png"], "conversations": [*DIALOGUE, *SECOND, *third]}
    (tmp_path / "rows.json").write_text(json.dumps([row], indent=1))
    written(tmp_path, row)
    source = described(tmp_path / "rows.json", turns="conversations", turns_taken="all")
    loaded = {one.id: one for one in load(source, 0.0, max_pictures=2)}
    assert {id: (one.question, len(one.pictures)) for id, one in loaded.items()} == {
        "7": ("What colour?", 1),
        "7/2": ("What shape?", 1),
        "7/3": ("<image 1>And <image 2> this?", 2),
    }
    assert count([source]) == 3
    source.rows = 2160
    assert count([source]) == 3, "a file has no more than it has"
    source.rows = None
    source.turns = "first"
    first = load(source, 0.0, max_pictures=2)
    assert first.remarks == ["2 further questions of the same dialogues are not asked (turns: all asks them)"]


@pytest.mark.parametrize(("taken", "asked"), [("first", 1), ("all", 9)])
def test_a_picture_of_many_turns_is_decoded_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taken: str, asked: int
) -> None:
    calls: list[Picture] = []

    def counted(picture: Picture, most: int) -> loading.Checked:
        calls.append(picture)
        return check(picture, most)

    monkeypatch.setattr(loading, "check", counted)
    row = {"images": [PNG], "texts": [{"user": f"q{n}?", "assistant": "a"} for n in range(9)]}
    loaded = load(described(written(tmp_path, row), turns="texts", image="images", turns_taken=taken))
    assert (len(loaded), len(calls)) == (asked, 1)


def test_an_error_while_a_data_set_is_streamed_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        info = datasets.DatasetInfo()

        def with_format(self, _: str) -> "Broken":
            return self

        def iter(self, _: int) -> Any:
            raise RuntimeError("the connection is lost")

    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: Broken())
    with pytest.raises(DataError, match=r"org/name train: cannot be read \(the connection is lost\). Mend id, subset"):
        load(DataSource(path="org/name", split="train"))


@pytest.mark.parametrize(
    ("question", "choices", "expected"),
    [
        ("<image> Compare it with <image>.", None, ["<image 1> Compare it with <image 2>.", 64, 8]),
        ("<image 2> or <image 1>: like <image 2>?", None, ["<image 1> or <image 2>: like image 1?", 8, 64]),
        ("<image 1><image 2>\n what?", None, ["what?", 64, 8]),
        ("<image 1> Which?", ["<image 2>", "none"], ["<image 1> Which?", 64, 8]),
    ],
)
def test_pictures_stand_where_their_markers_stood(
    tmp_path: Path, question: str, choices: Any, expected: list[Any]
) -> None:
    row = good(1, question=question, image=["a.png", "b.png"]) | (
        {"choices": choices, "answer": "A"} if choices else {}
    )
    (tmp_path / "b.png").write_bytes(png((8, 8)))
    problem = only(jsonl(tmp_path, [row]))
    sizes = [64 if (one.path or "").endswith("a.png") else 8 for one in problem.pictures]
    assert [problem.question, *sizes] == expected
    assert problem.label in ("red", "<image 2>")


def test_a_source_names_its_rows_and_says_how_they_are_asked_and_marked(tmp_path: Path) -> None:
    source = described(written(tmp_path, {"question": "q?", "answer": "a", "image": "a.png"}), name="mine", rule="anls")
    source.suffix = "Answer with one word."
    problem = only(source)
    assert (problem.id, problem.kind, problem.dataset) == (f"mine/{tmp_path}/rows.parquet:1", "mine", "mine")
    assert (problem.suffix, problem.rule) == ("Answer with one word.", "anls")


def flat(number: int) -> dict[str, Any]:
    return {"id": f"q{number}", "question": f"q{number}?", "answer": "007", "image": "a.png"}


def as_jsonl(file: Path, rows: list[dict]) -> None:
    content = "\n".join(map(json.dumps, rows)).encode()
    file.write_bytes(gzip.compress(content) if file.suffix == ".gz" else content)


def as_csv(file: Path, rows: list[dict]) -> None:
    with file.open("w", newline="") as lines:
        table = csv.DictWriter(lines, list(rows[0]), delimiter="\t" if file.suffix == ".tsv" else ",")
        table.writeheader()
        table.writerows([row | {"image": base64.b64encode(png()).decode()} for row in rows])


def as_tar(file: Path, rows: list[dict]) -> None:
    with tarfile.open(file, "w") as archive:
        for row in rows:
            for ending, content in (("png", png()), ("json", json.dumps(row | {"image": None}).encode())):
                entry = tarfile.TarInfo(f"{row['id']}.{ending}")
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))


def as_saved(folder: Path, rows: list[dict]) -> None:
    data = datasets.Dataset.from_list([row | {"image": PNG} for row in rows])
    data = data.cast_column("image", datasets.Image())
    if folder.name == "split":
        data = datasets.DatasetDict({"train": data, "test": data.select([0])})
    data.save_to_disk(str(folder))


def as_shards(folder: Path, rows: list[dict]) -> None:
    folder.mkdir()
    for number, row in enumerate(rows):
        pq.write_table(pa.Table.from_pylist([row | {"image": PNG}]), folder / f"train-{number:05}.parquet")
    if folder.name == "splits":
        pq.write_table(pa.Table.from_pylist([rows[0] | {"image": PNG}]), folder / "test-00000.parquet")


OF_JSON = {"question": "json.question", "answer": "json.answer", "id": "json.id", "image": "png"}
PLACES: list[tuple[str, Any, dict[str, Any]]] = [
    ("rows.jsonl", as_jsonl, {}),
    ("rows.jsonl.gz", as_jsonl, {}),
    ("rows.json", lambda file, rows: file.write_text(json.dumps(rows)), {}),
    ("rows.ndjson", lambda file, rows: file.write_text("\n".join(json.dumps(row, indent=1) for row in rows)), {}),
    ("rows.csv", as_csv, {}),
    ("rows.tsv", as_csv, {}),
    ("rows.tar", as_tar, OF_JSON),
    ("saved", as_saved, {}),
    ("split", as_saved, {"split": "train"}),
    ("shards", as_shards, {}),
    ("splits", as_shards, {"split": "train"}),
    ("splits/train-*.parquet", lambda file, rows: as_shards(file.parent, rows), {}),
]


@pytest.mark.parametrize(("name", "write", "fields"), PLACES, ids=[name for name, *_ in PLACES])
def test_rows_are_read_from_files_folders_and_archives_all_or_few(
    tmp_path: Path, name: str, write: Any, fields: dict[str, Any]
) -> None:
    written(tmp_path)
    write(tmp_path / name, [flat(number) for number in range(9)])
    source = described(tmp_path / name, **fields)
    every = load(source, 0.0)
    assert sorted(one.id for one in every) == [f"q{number}" for number in range(9)]
    assert {one.label for one in every} == {"007"}
    before = [table.stamp() for table in tables(source)]
    source.rows = 4
    assert [one.id for one in load(source, 0.0)] == [one.id for one in every][:4], "the same order"
    for file in filter(Path.is_file, tmp_path.rglob("*")):
        os.utime(file, ns=(0, 0))
    assert before != [table.stamp() for table in tables(source)], "it would be read anew"


def test_rows_in_an_object_store_are_read_anew_when_they_change(tmp_path: Path, bucket: str) -> None:
    as_jsonl(written(tmp_path).with_name("rows.jsonl.gz"), [flat(number) for number in range(5)])
    as_shards(tmp_path / "shards", [flat(number) for number in range(3)])
    store, _ = fs.FileSystem.from_uri(bucket)
    fs.copy_files(str(tmp_path), "bucket/data", destination_filesystem=store)
    lines = DataSource(path=f"{bucket}/data/rows.jsonl.gz", images=str(tmp_path))
    assert len(load(lines, 0.0)) == 5
    with pytest.raises(DataError, match=r"'a.png' is relative, and the rows lie in no folder: set images"):
        load(DataSource(path=lines.path))
    assert len(load(DataSource(path=f"{bucket}/data/shards/*.parquet"), 0.0)) == 3
    with pytest.raises(DataError, match="s3://bucket/none/\\*.parquet: nothing is there"):
        load(DataSource(path=f"{bucket}/none/*.parquet"))
    before = [table.stamp() for table in tables(lines)]
    as_jsonl(tmp_path / "rows.jsonl.gz", [flat(9)])
    fs.copy_files(str(tmp_path / "rows.jsonl.gz"), "bucket/data/rows.jsonl.gz", destination_filesystem=store)
    assert before != [table.stamp() for table in tables(lines)]


@pytest.mark.parametrize("split", ["val", "valid", "validation", "dev"])
def test_a_folder_s_split_is_told_by_names_of_files_and_folders(tmp_path: Path, split: str) -> None:
    for place in ("Train/rows.jsonl", "VAL/rows.jsonl", ".ipynb_checkpoints/train.jsonl", "dataset_info.json"):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        as_jsonl(tmp_path / place, [flat(1 + place.startswith("VAL"))])
    source = described(tmp_path, split=split, images=str(written(tmp_path / "VAL").parent))
    (tmp_path / "VAL" / "rows.parquet").unlink()
    assert [one.id for one in load(source, 0.0)] == ["q2"]
    with pytest.raises(DataError, match="holds the splits train, validation: set split"):
        load(described(tmp_path))
    (tmp_path / "more.jsonl").write_text("{}")
    (tmp_path / "more.jsonl.gz").write_bytes(b"")
    (tmp_path / "VAL" / "rows.jsonl").unlink()
    with pytest.raises(DataError, match="holds a file both compressed and not"):
        load(described(tmp_path))


def test_several_keys_give_a_value_each_whatever_their_last_parts(tmp_path: Path) -> None:
    row = {"x": {"text": "q1", "path": "a.png"}, "y": {"text": "q2", "path": "b.png"}, "answer": "a"}
    problem = only(described(written(tmp_path, row), question=["x.text", "y.text"], image=["x.path", "y.path"]))
    assert (problem.question, len(problem.pictures)) == ("q1\nq2", 2)


@pytest.mark.parametrize(("answer_is", "answer"), [("letter", "C"), ("index", 2), ("number", "3"), (None, "z")])
def test_a_choice_that_is_missing_does_not_move_the_others(tmp_path: Path, answer_is: Any, answer: Any) -> None:
    row = {"image": PNG, "question": "q?", "c_a": "x", "c_b": None, "c_c": "z", "c_d": "w", "answer": answer}
    source = described(written(tmp_path, row), choices=["c_a", "c_b", "c_c", "c_d"])
    source.answer_is = answer_is
    problem = only(source)
    assert (problem.label, problem.choices) == ("z", ("x", "z", "w"))


WRONG: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"images": [PNG], "conversations": SECOND}, {"turns": "conversations"}, "set fields.image=images, or"),
    ({"image": PNG, "question": "Picture 1: <img>a.png</img> What?", "answer": "a"}, {}, "<img> in the text"),
    ({"image": PNG, "question": ["q1?", "q2?"], "answer": "a"}, {}, "expected one text, found 2: write a row for each"),
    ({"data": [{"question": "q?"}, {"question": "r?"}]}, {}, "if the rows are in data: jq -c"),
    ({"1": {"question": "q?"}, "2": {"question": "r?"}}, {}, "name the keys|to the picture's key"),
    (
        {"image": PNG, "in": {"question": "q?", "options": ["x", "y"]}, "answer": "B"},
        {"question": "in.question"},
        "in.options may be meant as choices: set fields.choices=in.options",
    ),
    ({"image": PNG, "question": "q?", "choices": "A. x; B. y", "answer": "A"}, {}, "or set fields.choices=.. if the"),
    ({"image": PNG, "question": "q?", "choices": [{"value": "x"}], "answer": "A"}, {}, "add the key, as in choices.va"),
]


@pytest.mark.parametrize(("row", "fields", "told"), WRONG)
def test_what_would_be_read_wrongly_is_refused(
    tmp_path: Path, row: dict[str, Any], fields: dict[str, Any], told: str
) -> None:
    with pytest.raises(DataError, match=told):
        load(described(written(tmp_path, row), **fields))


def test_references_written_as_a_list_are_several(tmp_path: Path) -> None:
    row = {"image": PNG, "question": "q?", "answer": "['1999', 'in 1999', '1999']"}
    problem = only(described(written(tmp_path, row)))
    assert (problem.label, problem.references) == ("1999", ("1999", "in 1999", "1999"))
    assert only(described(written(tmp_path, row | {"answer": "[3, 4]"}))).label == "[3, 4]"


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("question;answer;image\nq?;a;a.png\n", "a header of different names with ',' between"),
        ("question,answer,answer\nq?,a,b\n", "a header of different names"),
        ("question,answer,image\nq?,a\n", "2 values, expected 3 as in the header"),
        ('question,answer,image\n"q?,a,a.png\n', "unexpected end of data"),
    ],
)
def test_a_table_that_would_be_read_wrongly_is_refused(tmp_path: Path, content: str, told: str) -> None:
    (tmp_path / "rows.csv").write_text(content)
    with pytest.raises(DataError, match=told):
        load(described(tmp_path / "rows.csv"))
    (tmp_path / "rows.csv").write_bytes("question,answer,image\nwhät?,a,\n".encode("latin-1"))
    with pytest.raises(DataError, match="Write it in UTF-8: iconv -f LATIN1"):
        load(described(tmp_path / "rows.csv"))


def test_values_of_archives_stay_as_they_are_written(tmp_path: Path) -> None:
    rows = [flat(number) | {"answer": answer} for number, answer in enumerate([3, 3, 3, 3, 3, 2.5, True, "x"])]
    as_tar(tmp_path / "rows.tar", rows)
    loaded = load(described(tmp_path / "rows.tar", **OF_JSON))
    assert {one.id: one.label for one in loaded} == {**{f"q{n}": "3" for n in range(5)}, "q5": "2.5", "q7": "x"}
    with gzip.open(tmp_path / "rows.tar.gz", "wb") as packed:
        packed.write((tmp_path / "rows.tar").read_bytes())
    assert len(load(described(tmp_path / "rows.tar.gz", **OF_JSON))) == 7


def test_an_address_of_another_kind_is_refused(tmp_path: Path) -> None:
    for address in ("hf://datasets/a/b/train.parquet", "https://x.org/a.jsonl"):
        with pytest.raises(DataError, match="expected one of s3://, .* Download it, or name a data set on the Hub"):
            load(DataSource(path=address))


def test_a_folder_of_two_splits_or_kinds_is_refused(tmp_path: Path) -> None:
    as_shards(tmp_path / "splits", [flat(1)])
    with pytest.raises(DataError, match="holds the splits test, train: set split"):
        load(described(tmp_path / "splits"))
    (tmp_path / "splits" / "rows.jsonl").write_text("{}")
    with pytest.raises(DataError, match=r"one of the kinds .* found 2 .parquet, 1 .jsonl. Name a pattern"):
        load(described(tmp_path / "splits"))
    as_saved(tmp_path / "split", [flat(1)])
    with pytest.raises(DataError, match="set split, for instance train"):
        load(described(tmp_path / "split"))


def test_a_broken_row_of_an_array_costs_itself(tmp_path: Path) -> None:
    written(tmp_path)
    twice = '{"question": "a", "question": "b"}'
    rows = [json.dumps(flat(1)), twice, "3", json.dumps(flat(2) | {"question": "x" * 3_000_000})]
    (tmp_path / "rows.json").write_text(" [ " + " ,\n".join(rows) + "]\n")
    loaded = load(described(tmp_path / "rows.json"))
    assert sorted(one.id for one in loaded) == ["q1", "q2"]
    reasons = [one.reason for one in loaded.rejected]
    assert "stands there twice" in reasons[0] and reasons[1] == "expected an object, found int"


def test_rows_with_and_without_pictures_are_read_side_by_side(tmp_path: Path) -> None:
    rows = [flat(1), {key: value for key, value in flat(2).items() if key != "image"}, flat(3) | {"image": None}]
    as_jsonl(written(tmp_path).with_name("rows.jsonl"), rows)
    assert {one.id: len(one.pictures) for one in load(described(tmp_path / "rows.jsonl", image="image?"))} == {
        "q1": 1,
        "q2": 0,
        "q3": 0,
    }
    [without] = load(described(tmp_path / "rows.jsonl")).rejected
    assert "to [] if no row has pictures, to image? if some have none" in without.reason


def test_a_damaged_archive_is_refused_and_an_empty_picture_is_none(tmp_path: Path) -> None:
    as_tar(tmp_path / "rows.tar", [flat(number) for number in range(9)])
    whole = (tmp_path / "rows.tar").read_bytes()
    for name, content in {
        "cut": whole[: 512 * 9],
        "torn": whole[:5000],
        "json": whole.replace(b'{"id"', b'{"id'),
    }.items():
        (tmp_path / f"{name}.tar").write_bytes(content)
        with pytest.raises(DataError, match=f"{name}.tar: "):
            load(described(tmp_path / f"{name}.tar", **OF_JSON))
    row = {"question": "q?", "answer": "a", "image": {"bytes": b"", "path": "7.jpg"}}
    assert only(described(written(tmp_path, row))).pictures == ()


def test_pictures_of_rows_lie_in_the_folder_that_images_names(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(png())
    as_jsonl(tmp_path / "rows.jsonl", [flat(1)])
    assert only(described(tmp_path / "rows.jsonl", images=str(tmp_path / "pictures"))).pictures
    with pytest.raises(DataError, match=r"a.png does not exist"):
        load(described(tmp_path / "rows.jsonl"))


def several(folder: Path, **counts: int) -> list[DataSource]:
    sources = []
    for name, number in counts.items():
        (folder / name).mkdir(exist_ok=True)
        sources.append(jsonl(folder / name, [good(n) for n in range(number)]))
        sources[-1].name = name
    return sources


def test_a_mixture_has_the_shares_of_its_weights(tmp_path: Path) -> None:
    sources = several(tmp_path, a=50, b=90)
    assert [one.taken for one in load(sources).sources] == [50, 90]
    for source, weight in zip(sources, (1, 3), strict=True):
        source.weight = weight
    loaded = load(sources)
    assert [(one.name, one.taken, one.size) for one in loaded.sources] == [("a", 30, 50), ("b", 90, 90)]
    assert len({one.id for one in loaded}) == 120 and count(sources) == 120
    first = [one.dataset for one in loaded][:40]
    assert 4 <= first.count("a") <= 16, "mixed, not one after the other"
    assert [one.taken for one in load(sources, most=20).sources] == [5, 15]
    for source in sources:
        source.weight = None
    assert [one.taken for one in load(sources, most=14).sources] == [5, 9]


def test_rows_that_cannot_be_used_are_replaced_by_others_of_their_source(tmp_path: Path) -> None:
    source = jsonl(tmp_path, [good(n, answer="" if n % 3 else "a") for n in range(90)])
    source.rows = 20
    loaded = load(source)
    assert (len(loaded), loaded.sources[0].taken) == (20, 20)
    assert 20 <= loaded.sources[0].set_aside <= 60, "no more are read than needed"
    source.rows = 40
    assert load(source).remarks[0] == f"{source.path}: 30 questions instead of 40; the others cannot be used"


@pytest.mark.parametrize("keys", [["kind"], ["kind?"], ["kind", "part?"], ["meta.kind?"]])
def test_few_rows_of_a_source_hold_its_kinds_in_turn(tmp_path: Path, keys: list[str]) -> None:
    kinds = [("rare" if n < 3 else "common") for n in range(90)]
    rows = [good(n, kind=kind, meta={"kind": kind}) for n, kind in enumerate(kinds)]
    source = jsonl(tmp_path, rows)
    source.rows, source.fields = 6, RowFields(kind=keys)
    assert sorted(one.kind for one in load(source)) == ["common"] * 3 + ["rare"] * 3


@pytest.mark.parametrize(
    ("weights", "sizes", "most", "expected"),
    [
        ((None, None), (50, 90), None, [50, 90]),
        ((1, 3), (50, 90), None, [30, 90]),
        ((1, 1, 1), (10, 10, 10), 10, [4, 3, 3]),
        ((None, None), (0, 7), 5, [0, 5]),
        ((0.5, 0.5), (1, 1000), 100, [1, 1]),
    ],
)
def test_quotas(weights: tuple, sizes: tuple, most: int | None, expected: list[int]) -> None:
    sources = [DataSource(path="x", weight=weight) for weight in weights]
    assert quotas(sources, sizes, most) == expected


def test_any_beginning_of_a_balanced_order_holds_the_kinds_in_turn() -> None:
    order, kinds = seeded(100, 3), np.array([0] * 90 + [1] * 8 + [2] * 2, np.uint32)
    found = balanced(order, kinds)
    assert sorted(found) == list(range(100))
    assert [list(kinds[found[:n]]).count(2) for n in (3, 6, 50)] == [1, 2, 2]
    assert np.array_equal(balanced(order, None), order)
