"""Every source that conf/data describes is opened with two rows of its layout. The layouts are those of the public data
sets, and stand here apart from the descriptions. The table of docs/DATA.md names all sources."""

import io
import json
import re
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pytest

from masters_ray.config import DataSource, load
from masters_ray.method import marking
from tests import sources
from tests.builders import png

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "conf" / "data").glob("*.yaml"))
DESCRIBED = [(file, one) for file in FILES for one in load(ROOT / "conf" / "demo.yaml", [str(file)]).data.train]
LABELS = {"relaxed": "12.5", "exact": "Yes.", "vqa": "2", "anls": "1/8/93", None: "So it is 4. The answer is B."}
"""A likely label of a source with this rule."""
Row = dict[str, Any]


def picture(number: int) -> Row:
    return {"bytes": png((8 + number, 8)), "path": None}


def onevision(number: int, label: str) -> Row:
    return {"id": f"r{number}", "image": picture(number), "data_source": "x"} | llava(number, label, 2)


def cauldron(number: int, label: str) -> Row:
    said = [{"user": f"Is it {number}, {turn}?", "assistant": label, "source": "x"} for turn in (1, 2)]
    return {"images": [picture(number)], "texts": said}


def textvqa(number: int, label: str) -> Row:
    answers = [label] * 6 + ["another"] * 4
    return {"image": picture(number), "question": f"Is it {number}, 1?", "answers": answers, "ocr_tokens": ["12"]}


def preferred(number: int, label: str) -> Row:
    row = {"image": picture(number), "question": f"Is it {number}, 1?", "chosen": label, "rejected": "another"}
    return row | {"ds_name": "x"}


def mmpr(number: int, label: str) -> Row:
    return {"question": f"<image>\nIs it {number}, 1?", "answer": label}


def llava(number: int, label: str, turns: int = 1) -> Row:
    marks = ["<image>\n", ""]
    asked = [{"from": "human", "value": f"{marks[turn - 1]}Is it {number}, {turn}?"} for turn in range(1, turns + 1)]
    return {"conversations": [one for said in asked for one in (said, {"from": "gpt", "value": label})]}


ON_THE_HUB: dict[str, Callable[[int, str], Row]] = {
    "lmms-lab/LLaVA-OneVision-Data": onevision,
    "HuggingFaceM4/the_cauldron": cauldron,
    "lmms-lab/textvqa": textvqa,
    "openbmb/RLAIF-V-Dataset": preferred,
}
"""Id → row of the data set."""


def as_hub(folder: Path, source: DataSource, label: str) -> str:
    """Writes a data set as the Hub holds it: parquet with pictures, subsets named in its card."""
    data = datasets.Dataset.from_list([ON_THE_HUB[source.path](number, label) for number in (1, 2)])
    column, kind = ("images", [datasets.Image()]) if "images" in data.column_names else ("image", datasets.Image())
    datasets.disable_progress_bars()
    data.cast_column(column, kind).to_parquet(folder / "data" / "train-00000-of-00001.parquet")
    split = {"split": source.split, "path": "data/train-*"}
    card = {"configs": [{"config_name": source.subset or "default", "data_files": [split]}]}
    (folder / "README.md").write_text(f"---\n{json.dumps(card)}\n---\n")
    return str(folder)


def as_file(folder: Path, source: DataSource, label: str) -> str:
    """Writes what is downloaded: MMPR's jsonl, MathV360K's JSON array, a tar of Infinity-MM."""
    place = folder / Path(source.path).name.replace("*", "0")
    of_lines = preferred if "/annotations/" in source.path else mmpr
    row = of_lines if place.suffix == ".jsonl" else llava
    rows = [row(number, label) | {"image": f"in/{number}.png"} for number in (1, 2)]
    (folder / "in").mkdir()
    for number in (1, 2):
        (folder / "in" / f"{number}.png").write_bytes(picture(number)["bytes"])
    if place.suffix == ".tar":
        with tarfile.open(place, "w") as archive:
            for number, one in enumerate(rows, 1):
                for ending, content in (("jpg", picture(number)["bytes"]), ("json", json.dumps(one).encode())):
                    entry = tarfile.TarInfo(f"{number:08}.{ending}")
                    entry.size = len(content)
                    archive.addfile(entry, io.BytesIO(content))
    else:
        place.write_text("\n".join(map(json.dumps, rows)) if place.suffix == ".jsonl" else json.dumps(rows, indent=1))
    return str(folder / Path(source.path).name)


@pytest.mark.parametrize(("file", "source"), DESCRIBED, ids=[f"{file.stem}-{one.name}" for file, one in DESCRIBED])
def test_a_described_source_is_read(tmp_path: Path, file: Path, source: DataSource) -> None:
    label = LABELS[source.rule]
    write = as_hub if source.split else as_file
    local = replace(source, path=write(tmp_path, source, label), images=str(tmp_path) if source.images else None)
    loaded = sources.load(local, 0.0)
    turns = (1, 2) if source.turns == "all" else (1,)
    assert sorted(one.question for one in loaded) == [f"Is it {number}, {turn}?" for number in (1, 2) for turn in turns]
    for one in loaded:
        assert (one.label, len(one.pictures), one.dataset) == (label, 1, source.name)
        assert (one.rule, one.suffix) == (source.rule or "", source.suffix)
        assert bool(one.references) == (source.fields.answer == ["answers"])
        assert source.rule is None or (marking.right(label, one, "exact") and not marking.right("no, 99", one, "exact"))
    assert bool(source.rule) == bool(source.suffix), "a rule needs short answers, which the suffix asks for"


def test_the_table_in_the_documentation_names_every_described_source() -> None:
    table = (ROOT / "docs" / "DATA.md").read_text().partition("## Public sources")[2].partition("\n## ")[0]
    named = {(stem, name) for stem, names in re.findall(r"`(\w+): ([\w, ]+)`", table) for name in names.split(", ")}
    assert named == {(file.stem, one.name) for file, one in DESCRIBED}
