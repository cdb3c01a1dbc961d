"""The real lmms-eval on the toy pair, offline, with a task of one's own over a parquet file (make harness)."""

import io
import json
import subprocess
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from examples import easy_vqa
from masters_ray import data
from masters_ray.evaluate import wilson
from masters_ray.records import Picture
from masters_ray.report.summary import read_summary
from tests.conftest import PAIR, ROOT
from tests.e2e.runs import PROGRAM, environment, long_form
from tests.unit.test_report import build, text_of

HARNESS = ROOT / ".harness" / "bin" / "python"
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(1500),
    long_form,
    pytest.mark.skipif(not HARNESS.exists(), reason="make harness sets lmms-eval up"),
]
TASK = """
task: toy_vqa
dataset_path: parquet
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: generate_until
doc_to_visual: !function utils.pictures
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{max_new_tokens: 8, temperature: 0}}
metric_list:
  - {{metric: exact_match, aggregation: mean, higher_is_better: true, ignore_case: true, ignore_punctuation: true}}
metadata: {{version: 1.0}}
"""
UTILS = """
import io
from PIL import Image


def pictures(doc):
    return [Image.open(io.BytesIO(doc["png"])).convert("RGB")]
"""
QUESTIONS = 48


def encoded(picture: Picture) -> bytes:
    content = io.BytesIO()
    data.decode(picture).save(content, "PNG")
    return content.getvalue()


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    """A folder with the task toy_vqa."""
    folder = tmp_path / "tasks" / "toy_vqa"
    folder.mkdir(parents=True)
    asked = easy_vqa.problems("test")[:QUESTIONS]
    columns = {"question": [one.question for one in asked], "answer": [one.label for one in asked]}
    pq.write_table(pa.table(columns | {"png": [encoded(one.pictures[0]) for one in asked]}), folder / "test.parquet")
    (folder / "toy_vqa.yaml").write_text(TASK.format(file=folder / "test.parquet"))
    (folder / "utils.py").write_text(UTILS)
    return folder.parent


def benchmark(*words: object) -> subprocess.CompletedProcess[str]:
    offline = environment(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1")
    call = [*PROGRAM, "benchmark", "conf/demo.yaml", *map(str, words)]
    return subprocess.run(call, cwd=ROOT, env=offline, capture_output=True, text=True, check=False)


def plain(text: str) -> str:
    return text.strip().strip(".").lower()


def test_the_recorded_accuracy_is_that_of_the_harness_s_own_log(tmp_path: Path, tasks: Path) -> None:
    """Of all three models; the trained one is the teacher here, so that it has the same answers."""
    run = tmp_path / "run"
    run.mkdir()
    build(run)
    (run / "student").symlink_to(PAIR / "teacher")
    words = f"run.dir={run}", "--include-path", tasks, "--tasks", "toy_vqa"
    call = benchmark(*words)
    assert call.returncode == 0, call.stdout + call.stderr
    scores = read_summary(run).benchmarks["toy_vqa"].scores
    assert list(scores) == ["teacher", "student_before", "student_after"]
    page = text_of((run / "report.html").read_text())
    for name, score in scores.items():
        [log] = (run / "benchmarks" / "toy_vqa").glob(f"{name}-*/*/*_samples_toy_vqa.jsonl")
        rows: list[dict[str, Any]] = [json.loads(line) for line in log.read_text().splitlines()]
        right = sum(plain(row["filtered_resps"]) == plain(row["target"]) for row in rows)
        assert len(rows) == score.n == QUESTIONS
        assert (score.value, score.low, score.high) == pytest.approx(
            (right / QUESTIONS, wilson(right, QUESTIONS).low, wilson(right, QUESTIONS).high)
        )
        assert f"{100 * right / QUESTIONS:.1f} % ({100 * score.low:.1f}–{100 * score.high:.1f})" in page
    assert scores["teacher"].value > 0.85 > scores["student_before"].value
    assert scores["student_after"].value == scores["teacher"].value
    again = benchmark(*words, f"--harness={HARNESS}")
    assert again.returncode == 0 and "measures" not in again.stdout, "all is there"


def test_a_task_that_the_harness_does_not_know(tmp_path: Path) -> None:
    call = benchmark(f"run.dir={tmp_path}", "--tasks", "no_such_task")
    assert call.returncode == 1
    assert "no_such_task of the teacher: lmms-eval wrote no results" in call.stderr
    assert "log.txt ends:" in call.stderr and "Tasks not found: no_such_task" in call.stderr
