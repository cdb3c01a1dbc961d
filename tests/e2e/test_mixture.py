"""A run that trains on five sources of five layouts at once, mixed by weights; one shows two pictures in its text."""

import base64
import csv
import html
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from examples import easy_vqa
from masters_ray import store
from masters_ray.records import RolloutGroup
from tests import trackers
from tests.conftest import ROOT
from tests.e2e.runs import SMALL, masters_ray, summary

pytestmark = pytest.mark.e2e
EASY_VQA = ROOT / easy_vqa.FOLDER
COLOURS = ["red", "green", "blue", "black", "gray", "teal", "brown", "yellow"]
WEIGHTS = {"dialogue": 2, "references": 1, "letters": 1, "index": 1, "own": 3}


def write_sources(folder: Path) -> list[dict[str, Any]]:
    """Writes parts of easy-vqa in five layouts; returns their descriptions. Two rows of "own" have no picture file."""
    rows = [json.loads(line) for line in (EASY_VQA / "train.jsonl").read_text().splitlines()]
    rows = [row for row in rows if row["kind"] == "colour" and row["answer"] in COLOURS]
    rows = [row | {"path": EASY_VQA / row["image"]} for row in rows]
    dialogues, people, letters, indices, own = (rows[first::5] for first in range(5))
    dialogue = [
        {
            "id": row["id"],
            "image": row["image"],
            "conversations": [
                {"from": "human", "value": f"<image>\n{row['question']}"},
                {"from": "gpt", "value": row["answer"]},
            ],
        }
        for row in dialogues
    ]
    (folder / "dialogue.json").write_text(json.dumps(dialogue))
    answered = [
        {"question": row["question"], "answers": [{"answer": one} for one in (row["answer"], "a shape", row["answer"])]}
        | {"image": {"bytes": row["path"].read_bytes(), "path": None}}
        for row in people
    ]
    pq.write_table(pa.Table.from_pylist(answered), folder / "references.parquet")
    with (folder / "letters.tsv").open("w", newline="") as file:
        table = csv.writer(file, delimiter="\t")
        table.writerow(["question", *"ABCD", "answer", "image"])
        for row in letters:
            choices = [row["answer"], *(one for one in COLOURS if one != row["answer"])][:4]
            picture = base64.b64encode(row["path"].read_bytes()).decode()
            table.writerow([row["question"], *choices, "A", picture])
    chosen = [
        {"question": row["question"], "options": COLOURS, "answer": COLOURS.index(row["answer"])}
        | {"image": {"bytes": row["path"].read_bytes(), "path": None}}
        for row in indices
    ]
    (folder / "index").mkdir()
    for number in range(2):
        pq.write_table(pa.Table.from_pylist(chosen[number::2]), folder / "index" / f"{number}.parquet")
    lines = [
        {"question": f"<image> or <image>: {row['question']}", "answer": row["answer"], "image": [str(row["path"])] * 2}
        for row in own
    ]
    for row in lines[:2]:
        row["image"] = ["gone.png"] * 2
    (folder / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines[:40]))
    descriptions: dict[str, dict[str, Any]] = {
        "dialogue": {"path": "dialogue.json", "images": str(EASY_VQA), "fields": {"turns": "conversations"}},
        "references": {"path": "references.parquet", "fields": {"answer": "answers.answer"}, "rule": "vqa"},
        "letters": {
            "path": "letters.tsv",
            "fields": {"choices": list("ABCD")},
            "answer_is": "letter",
            "rule": "choice",
        },
        "index": {"path": "index", "fields": {"choices": "options"}, "answer_is": "index", "rule": "choice"},
        "own": {"path": "own.jsonl", "suffix": "Answer with one word."},
    }
    return [
        {"name": name, "weight": WEIGHTS[name]} | of | {"path": str(folder / of["path"])}
        for name, of in descriptions.items()
    ]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mixture")
    sources = write_sources(folder)
    mixture = folder / "mixture.yaml"
    mixture.write_text(yaml.safe_dump({"data": {"train": sources, "train_rows": 48, "max_quarantined_share": 0.2}}))
    words = [word for word in SMALL if not word.startswith(("data.train", "run.skip_checks"))]
    words += ["teacher.engine.max_pictures=2", "student.engine.max_pictures=2"]
    words.append("tracker=[tensorboard,wandb,mlflow,trackio]")
    env = trackers.environment(folder)
    done = masters_ray("run", "conf/demo.yaml", str(mixture), f"run.dir={folder / 'run'}", *words, **env)
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(f"check {name}: passed" in done.stdout for name in ("packing", "agreement", "pictures"))
    assert "training questions by source: dialogue 12 (25.0%), references 6 (12.5%)" in done.stdout
    return folder / "run"


def test_the_trackers_hold_the_numbers_and_samples_and_pages_of_the_run(finished: Path) -> None:
    accuracies = summary(finished)["accuracy"]
    steps = len((finished / "metrics.jsonl").read_text().splitlines())
    measured = {(f"accuracy/{name}", steps): one["value"] for name, one in accuracies.items()}
    assert trackers.compare(finished, finished.parent, measured) > steps * 20
    examples = json.loads((finished / "examples.json").read_text())
    answers = [one["answer"]["text"] for example in examples for one in example["answers"]]
    kept = trackers.artefacts(finished, finished.parent)
    assert kept.keys() == {"wandb", "mlflow", "trackio"}
    for name, (texts, files) in kept.items():
        assert texts == answers, name
        assert {"report.html", "summary.json", "metrics.jsonl", "config.yaml", "README.md"} <= files, name


def groups(run: Path) -> list[RolloutGroup]:
    return [group for stage in range(3) for group in store.read(run / "rollouts" / f"stage-{stage}")]


def test_shares_drops_and_accuracy_of_every_source_stand_in_the_summary_and_the_report(finished: Path) -> None:
    found = {one["name"]: one for one in summary(finished)["sources"]}
    counts = Counter(group.problem.dataset for group in groups(finished))
    assert counts == {name: 6 * weight for name, weight in WEIGHTS.items()}
    page = html.unescape(re.sub(r"<[^>]*>", " ", (finished / "report.html").read_text()))
    table = page[page.rindex("Where the questions come from") :]
    for name, weight in WEIGHTS.items():
        one = found[name]
        assert (one["questions"], one["dropped"]) == (6 * weight, 0)
        for writer in ("teacher", "student"):
            own = [
                answer.judged.accuracy or 0
                for group in groups(finished)
                for answer in group.answers
                if group.problem.dataset == name and answer.judged.answer.source == writer
            ]
            assert one["right"][writer] == sum(own) / len(own)
        row = rf"{name}\s+(rule: \w+|as configured)\s+{6 * weight}\s+{weight / 8:.1%}\s+{one['set_aside']}\s+0\s"
        assert re.search(row.replace("%", r"\s%"), table), name
    assert found["own"]["set_aside"] <= 2 and found["dialogue"]["set_aside"] == 0


def test_every_question_is_asked_and_marked_as_its_source_says(finished: Path) -> None:
    for group in groups(finished):
        problem, verdicts = group.problem, {answer.judged.verdict for answer in group.answers}
        assert problem.id.startswith(f"{problem.dataset}/")
        assert problem.kind == problem.dataset
        rule = {"references": "vqa", "letters": "choice", "index": "choice"}.get(problem.dataset, "")
        assert problem.rule == rule
        assert (verdicts == {f"by rule ({rule})"}) == bool(rule)
        assert (problem.suffix == "Answer with one word.") == (problem.dataset == "own")
        assert problem.label in COLOURS
        assert problem.question.startswith("<image 1> or <image 2>: ") == (problem.dataset == "own")
