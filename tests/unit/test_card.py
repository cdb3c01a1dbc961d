"""The model card of a student, as the Hub and as a reader's Python read it."""

import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from examples import easy_vqa
from masters_ray.config import load, to_yaml
from masters_ray.models import weights
from masters_ray.report import card
from masters_ray.report.summary import Accuracies, BenchmarkRow, BenchmarkScore, ModelFacts, SourceFacts
from tests.builders import summary
from tests.conftest import DEMO, PAIR, ROOT


def written(folder: Path, *overrides: str, name: str = "student", **changes: Any) -> str:
    """Returns the card of a run of the demo with these settings, beside its student."""
    (folder / name).mkdir(exist_ok=True)
    config = to_yaml(load(DEMO, [f"run.dir={folder}", *overrides]))
    card.write(folder, summary(config=config, **changes), [])
    return (folder / name / "README.md").read_text(encoding="utf-8")


def rows(text: str, heading: str) -> list[list[str]]:
    """The cells of the first table below a heading."""
    table = text[text.index(f"## {heading}\n") :].split("\n\n| ")[1].split("\n\n")[0]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip("| "))] for line in table.splitlines()[2:]]


def test_the_hub_reads_what_the_student_was_made_from_and_under_which_licence(tmp_path: Path) -> None:
    (tmp_path / "student").mkdir()
    base = "---\nlicense: other\nlicense_name: qwen\nlicense_link: https://x.y/z\nlanguage: en\n---\n# Base\n"
    (tmp_path / "student" / weights.BASE_CARD).write_text(base)
    student = ModelFacts(checkpoint="Qwen/Qwen3-VL-2B", digest="a" * 64, parameters=2_000_000_000)
    source = "data.train=[{path: HuggingFaceM4/the_cauldron, subset: vqav2, split: train, license: CC BY 4.0}]"
    text = written(tmp_path, source, student=student)
    found = {name: value for name, value in ModelCard(text).data.to_dict().items() if value is not None}
    assert found == {
        "base_model": "Qwen/Qwen3-VL-2B",
        "base_model_relation": "finetune",
        "datasets": ["HuggingFaceM4/the_cauldron"],
        "library_name": "transformers",
        "license": "other",
        "license_name": "qwen",
        "license_link": "https://x.y/z",
        "pipeline_tag": "image-text-to-text",
        "tags": ["masters", "masters-ray", "knowledge-distillation", "grpo", "vision-language-model"],
    }
    assert "Licence: `other`, as the base" in text
    assert rows(text, "Data") == [["HuggingFaceM4/the\\_cauldron", "1,600", "100.0 %", "CC BY 4.0"]]
    adapters = ModelCard(written(tmp_path, source, name="student_adapters", student=student)).data.to_dict()
    assert (adapters["base_model_relation"], adapters["library_name"]) == ("adapter", "peft")


@pytest.mark.parametrize("base", ["no front matter", "---\nlicense: [\n---\n", "---\n- a list\n---\n"])
def test_a_licence_that_the_base_does_not_state_is_asked_for_and_a_path_is_no_id(base: str, tmp_path: Path) -> None:
    (tmp_path / "student").mkdir()
    (tmp_path / "student" / weights.BASE_CARD).write_text(base)
    student = ModelFacts(checkpoint="/models/student", digest="a" * 64, parameters=1)
    text = written(tmp_path, student=student)
    assert {"base_model", "license", "datasets"}.isdisjoint(ModelCard(text).data.to_dict())
    assert "Licence: **not stated**" in text


def test_the_tables_say_what_the_summary_says_whatever_names_hold(tmp_path: Path) -> None:
    of = summary().accuracy
    kinds = {"a|b_c": of.teacher.by_kind["colour"], "d": of.teacher.by_kind["shape"]}
    accuracies = Accuracies(**{name: replace(found, by_kind=kinds) for name, found in vars(of).items()})
    shares = [
        SourceFacts(name=name, rule="", questions=count, set_aside=0, dropped=0, right={}, accuracy={})
        for name, count in (("a|x", 400), ("b", 1200))
    ]
    mixture = "data.train=[{path: a.jsonl, name: 'a|x'}, {path: b.jsonl, name: b, license: MIT}]"
    found_by = {"metric": "m", "digest": "d", "harness": "1", "task_version": "1", "judge": ""}
    score = BenchmarkScore(value=0.5, low=0.4, high=0.6, n=100, **found_by)
    benchmarks = {"ai2d": BenchmarkRow(name="AI2D", paper=None, scores={"student_after": score})}
    text = written(tmp_path, mixture, accuracy=accuracies, sources=shares, benchmarks=benchmarks)
    found = rows(text, "Results")
    assert found[0] == ["mean over kinds", "61.2 % (57.1–65.2)", "83.0 % (80.2–85.7)", "96.9 % (95.7–98.1)", "720"]
    assert [row[0] for row in found] == ["mean over kinds", "a\\|b\\_c", "d"]
    assert {len(row) for row in found} == {5}
    assert "| AI2D | – | 50.0 % (40.0–60.0) | – |" in text
    assert rows(text, "Data") == [["a\\|x", "400", "25.0 %", "not stated"], ["b", "1,200", "75.0 %", "MIT"]]
    assert [row[1] for row in rows(text, "Training")] == ["20 %", "15 %", "10 %", "5 %", "0 %"]
    assert "python 3.11.9, torch 2.13.0." in text


def test_the_cards_example_answers_a_question(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(PAIR / "student", tmp_path / "student")
    text = written(tmp_path)
    picture = next((ROOT / easy_vqa.FOLDER).rglob("*.png"))
    shutil.copyfile(picture, tmp_path / "student" / "picture.png")
    monkeypatch.chdir(tmp_path / "student")
    program = text.split("```python\n")[1].split("```")[0]
    exec(compile(program, "README.md", "exec"), {})
    assert capsys.readouterr().out.strip()
