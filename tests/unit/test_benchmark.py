"""masters-ray benchmark: which tasks, what the harness is told, what its files mean, and what is not measured again."""

import dataclasses
import json
import math
import subprocess
import sys
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import psutil
import pytest

from masters_ray import report
from masters_ray.benchmark.harness import Harness
from masters_ray.benchmark.suite import Benchmark, read_suite
from masters_ray.cli import main
from masters_ray.config import load
from masters_ray.errors import ConfigError, HarnessError, StoreError
from masters_ray.evaluate import wilson
from masters_ray.files import read_record
from masters_ray.report.summary import Summary, read_benchmarks, read_summary
from tests.builders import checkpoint
from tests.conftest import DEMO, PAIR, ROOT
from tests.e2e.runs import PROGRAM, environment
from tests.unit.test_report import build, text_of

MASTERS = str(ROOT / "conf" / "benchmarks" / "masters.yaml")
JUDGED = ["mathvista_testmini_format", "mmbench_en_dev", "mmbench_cn_dev", "mmvet"]
FAKE = """#!{python}
import json, os, subprocess, sys
from pathlib import Path
words, here = sys.argv[1:], Path(__file__).parent
if words[0] == "-c":
    print("0.7.3")
    sys.exit()
given = dict(zip(words, words[1:]))
told = {{name: os.environ.get(name) for name in
    ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "OPENAI_API_URL", "OPENAI_API_KEY", "MODEL_VERSION", "API_TYPE")}}
with (here / "calls.jsonl").open("a") as calls:
    calls.write(json.dumps(given | told) + "\\n")
print("\\n".join(f"line {{number}}" for number in range(40)))
if given["--tasks"] == "broken":
    sys.exit()
if given["--tasks"] == "slow":
    engine = subprocess.Popen(["sleep", "600"])
    (here / "engine").write_text(str(engine.pid))
    engine.wait()
out = Path(given["--output_path"]) / "toy"
out.mkdir()
marks = [1.0, 1.0, 0.0, 1.0] if "teacher" in given["--model_args"] else [0.0, 0.0, 0.0, 1.0]
task, value = given["--tasks"], sum(marks) / len(marks)
(out / f"1_results.json").write_text(json.dumps({{
    "results": {{task: {{"alias": task, "exact_match,none": value, "exact_match_stderr,none": 0.25}}}},
    "configs": {{task: {{"metric_list": [{{"metric": "exact_match"}}]}}}},
    "versions": {{task: 1.0}},
}}))
(out / f"1_samples_{{task}}.jsonl").write_text("".join(json.dumps({{"exact_match": mark}}) + "\\n" for mark in marks))
"""


@pytest.fixture
def fake(tmp_path: Path) -> Path:
    """In place of the harness's Python: it writes down how it was called, and marks 3 of the teacher's 4 answers and 1
    of a student's as right."""
    program = tmp_path / "harness" / "python"
    program.parent.mkdir()
    program.write_text(FAKE.format(python=sys.executable))
    program.chmod(0o755)
    return program


@pytest.fixture
def judge() -> Iterator[str]:
    """The address of a server that has the model ``mine`` and the key ``secret``."""

    class Served(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            right = (self.path, self.headers["Authorization"]) == ("/v1/models", "Bearer secret")
            self.send_response(200 if right else 401)
            self.end_headers()
            self.wfile.write(json.dumps({"data": [{"id": "mine"}]}).encode() if right else b"")

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Served) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/v1"
        server.shutdown()


def called(fake: Path) -> list[dict[str, str]]:
    file = fake.with_name("calls.jsonl")
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def benchmark(fake: Path, *words: str, run: str = "run") -> int:
    """Its exit code, for a run of the demo's pair beside the harness."""
    return main(["benchmark", str(DEMO), f"run.dir={fake.parents[1] / run}", "--harness", str(fake), *words])


def recorded(
    folder: Path, values: dict[str, Any], marks: dict[str, list[Any]], metrics: tuple[str, ...] = ("score",)
) -> Path:
    """What lmms-eval 0.7.3 leaves. values: task → of its results; marks: task → of its answers, by the first metric."""
    out = folder / "teacher"
    out.mkdir(parents=True)
    configs = {task: {"task": task, "metric_list": [{"metric": name} for name in metrics]} for task in marks}
    results = {"results": values, "configs": configs, "versions": dict.fromkeys(marks, 0.0), "n-shot": {}}
    (out / "20261130_160000_results.json").write_text(json.dumps(results))
    for task, own in marks.items():
        rows = [{"doc_id": number, "target": "A", metrics[0]: mark} for number, mark in enumerate(own)]
        (out / f"20261130_160000_samples_{task}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def score(folder: Path, **benchmark: Any) -> tuple[float, float, float, int]:
    found = Harness(Path("none"), version="0.7.3").score(folder, Benchmark(task="t", **benchmark), "d")
    return found.value, found.low, found.high, found.n


def test_marks_of_0_and_1_have_wilson_s_interval(tmp_path: Path) -> None:
    values = {"t": {"score,none": 0.8, "score_stderr,none": 0.13, "other,none": 0.1}}
    found = score(recorded(tmp_path, values, {"t": [1.0] * 8 + [0.0] * 2}))
    assert found == (0.8, wilson(8, 10).low, wilson(8, 10).high, 10)


def test_other_marks_have_the_harness_s_standard_error_or_the_widest_interval(tmp_path: Path) -> None:
    graded, unknown = {"score,none": 60.0, "score_stderr,none": 5.0}, {"score,none": 60.0, "score_stderr,none": "N/A"}
    found = score(recorded(tmp_path / "graded", {"t": graded}, {"t": [40.0, 80.0]}), out_of=100)
    assert found == pytest.approx((0.6, 0.6 - 1.959964 * 0.05, 0.6 + 1.959964 * 0.05, 2))
    marks = [{"score": 0.4}, {"score": 0.8}]
    found = score(recorded(tmp_path / "unknown", {"t": unknown}, {"t": marks}), out_of=100)
    assert found == pytest.approx((0.6, wilson(1.2, 2).low, wilson(1.2, 2).high, 2))


def test_a_group_of_tasks_is_pooled_by_questions(tmp_path: Path) -> None:
    values = {"t": {" ": " "}} | {task: {"score,none": value} for task, value in (("a", 1.0), ("b", 0.25))}
    folder = recorded(tmp_path, values, {"a": [1.0], "b": [1.0, 0.0, 0.0, 0.0]})
    assert score(folder) == pytest.approx((0.4, wilson(2, 5).low, wilson(2, 5).high, 5))


def test_a_metric_of_some_questions_alone_counts_these(tmp_path: Path) -> None:
    """SEED-Bench has pictures and videos; MathVista's task tells no value when nothing is right."""
    folder = recorded(tmp_path, {"t": {"image,none": None}}, {"t": [0, 0]}, metrics=("image",))
    file = next(folder.rglob("*_samples_*"))
    file.write_text(file.read_text() + json.dumps({"video": 1}) + "\n")
    assert score(folder, metric="image") == (0.0, 0.0, wilson(0, 2).high, 2)


def test_what_cannot_be_reported_is_named_with_its_file(tmp_path: Path) -> None:
    folder = recorded(tmp_path, {"t": {"score,none": 64.0}}, {"t": [1]})
    with pytest.raises(HarnessError, match=r"_results.json: expected score to be a fraction, found 64.0. .*out_of"):
        score(folder)
    with pytest.raises(HarnessError, match="expected accuracy of t, found score,none"):
        score(folder, metric="accuracy")
    next(folder.rglob("*_samples_*")).unlink()
    with pytest.raises(StoreError, match=f"_samples_t.jsonl: missing. Delete {folder}"):
        score(folder)


def test_the_paper_s_thirteen_and_its_students() -> None:
    """Every student of conf/pairs that the paper reports has its figures; table 3's mean for Qwen3-VL-8B is 80.4."""
    suite = read_suite(MASTERS)
    assert [one.task for one in suite.benchmarks if one.judge is not None] == JUDGED
    assert len(suite.benchmarks) == 13 and all(len(row) == 13 for row in suite.paper.values())
    students = {
        load(file, ["run.dir=x", "data.train.path=x", "data.held_out.path=x"]).student.checkpoint
        for file in sorted((ROOT / "conf" / "pairs").glob("*.yaml"))
    }
    assert all(len(suite.paper_of(student)) == 13 for student in students)
    figures = suite.paper_of("Qwen/Qwen3-VL-8B-Instruct")
    assert round(100 * math.fsum(figures.values()) / 13, 1) == 80.4 and figures["ai2d"] == 0.885
    assert suite.paper_of("OpenGVLab/InternVL3_5-8B-HF")["ai2d"] == 0.872
    assert suite.paper_of("OpenGVLab/InternVL3-8B-hf")["ai2d"] == 0.889
    assert suite.paper_of(str(PAIR / "student")) == {}


def test_which_are_left_out_without_a_judge(capsys: pytest.CaptureFixture[str]) -> None:
    suite = read_suite(MASTERS)
    assert len(suite.chosen([], judged=False)) == 9
    assert f"left out, as they need a judge: {', '.join(JUDGED)}. A local vllm serve" in capsys.readouterr().out
    assert suite.chosen([], judged=True) == suite.benchmarks
    assert suite.chosen(["mmvet", "mine"], judged=True) == [suite.benchmarks[5], Benchmark(task="mine")]
    with pytest.raises(ConfigError, match="--judge-url: expected a judge's address for mmvet, found none"):
        suite.chosen(["ai2d", "mmvet"], judged=False)


def test_a_file_of_benchmarks_that_is_wrong_is_named(tmp_path: Path) -> None:
    file = tmp_path / "b.yaml"
    for text in ("benchmarks: [{task: a, metrics: b}]", "benchmarks: 3", "a: [", "[]"):
        file.write_text(text)
        with pytest.raises(ConfigError, match=f"{file}: expected benchmarks in YAML"):
            read_suite(str(file))
    with pytest.raises(ConfigError, match="No such file"):
        read_suite(str(tmp_path / "none.yaml"))


def test_every_model_is_measured_once(fake: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Until a checkpoint has other weights; what a killed call left unfinished is made again."""
    assert benchmark(fake, "--tasks", "mine", "--include-path", "tasks") == 0
    root = fake.parents[1] / "run"
    assert "student is not there yet" in capsys.readouterr().out
    teacher, student = called(fake)
    assert teacher["--include_path"] == "tasks" and teacher["--batch_size"] == "64"
    expected = {"dtype=float32", "max_model_len=1024", "enforce_eager=True", "tensor_parallel_size=1"}
    expected |= {"max_new_tokens=8", "trust_remote_code=False", f"model={PAIR / 'teacher'}"}
    assert expected < set(teacher["--model_args"].split(","))
    assert f"model={PAIR / 'student'}" in student["--model_args"]
    row = read_benchmarks(root)["mine"]
    assert {name: (one.value, one.n, one.harness, one.task_version) for name, one in row.scores.items()} == {
        "teacher": (0.75, 4, "0.7.3", "1.0"),
        "student_before": (0.25, 4, "0.7.3", "1.0"),
    }
    assert benchmark(fake, "--tasks", "mine") == 0 and len(called(fake)) == 2
    checkpoint(root / "student", weights=True)
    half = next((root / "benchmarks" / "mine").glob("teacher-*"))
    half.rename(half.with_name(f"{half.name}.tmp"))
    assert benchmark(fake, "--tasks", "mine,other") == 0
    assert [(one["--tasks"], "student" in one["--model_args"]) for one in called(fake)[2:]] == [
        ("mine", True),
        ("other", False),
        ("other", True),
        ("other", True),
    ]
    (root / "benchmarks" / "benchmarks.json").unlink()
    assert benchmark(fake, "--tasks", "mine") == 0
    assert len(called(fake)) == 7, "the teacher's folder had not been finished"
    checkpoint(root / "student", weights=True, tensors=lambda held: held.popitem())
    assert benchmark(fake, "--tasks", "other") == 0 and len(called(fake)) == 8
    rows = read_benchmarks(root)
    assert list(rows["mine"].scores) == ["teacher", "student_before"], "a score of other weights is gone"
    assert list(rows["other"].scores) == ["teacher", "student_before", "student_after"]


def test_a_finished_run_s_summary_and_report_have_the_table(fake: Path) -> None:
    root = fake.parents[1] / "run"
    root.mkdir()
    build(root)
    assert "benchmarks" not in (root / "summary.json").read_text() or read_summary(root).benchmarks == {}
    assert benchmark(fake, "--tasks", "ai2d", "student.checkpoint=" + str(PAIR / "student")) == 0
    found = read_summary(root)
    assert found.benchmarks == read_benchmarks(root) and found.benchmarks["ai2d"].name == "AI2D"
    page = text_of((root / "report.html").read_text())
    assert "Public benchmarks: lmms-eval asked" in page
    bounds = [f"{100 * one:.1f}" for one in (wilson(3, 4).low, wilson(3, 4).high)]
    assert f"AI2D75.0 % ({bounds[0]}–{bounds[1]})25.0 %" in page
    assert "––4ai2d, exact_match, lmms-eval 0.7.3" in page, "student after, paper: none"


def test_the_paper_s_figure_stands_beside(fake: Path) -> None:
    root = fake.parents[1] / "run"
    root.mkdir()
    build(root)
    folder = checkpoint(fake.parents[1] / "Qwen3-VL-2B-Instruct", weights=True)
    assert benchmark(fake, "--tasks", "ai2d", f"student.checkpoint={folder}") == 0
    assert read_summary(root).benchmarks["ai2d"].paper == 0.821
    assert "–82.1 %4ai2d" in text_of((root / "report.html").read_text())


def test_summaries_of_before_can_be_read(tmp_path: Path) -> None:
    build(tmp_path)
    content = json.loads((tmp_path / "summary.json").read_text())
    later = [one for one in dataclasses.fields(Summary) if one.default is None or callable(one.default_factory)]
    for one in later:
        content.pop(one.name, None)
    (tmp_path / "summary.json").write_text(json.dumps(content))
    found = read_record(tmp_path / "summary.json", Summary)
    assert (found.benchmarks, found.change, found.rewards) == ({}, None, None)
    assert "How many questions changed was not noted" in text_of(report.write(tmp_path).read_text())


def test_a_harness_that_fails_is_told_with_its_log(fake: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark(fake, "--tasks", "broken") == 1
    told = capsys.readouterr().err
    assert "broken of the teacher: lmms-eval wrote no results (exit code 0). Its log" in told
    assert "log.txt ends:\nline 15\n" in told and told.endswith("line 39\n")
    assert main(["benchmark", str(DEMO), f"run.dir={fake.parent}", "--harness", str(fake.parent / "none")]) == 1
    assert "expected a Python with lmms-eval, found none. Call make harness" in capsys.readouterr().err
    assert main(["benchmark", str(DEMO), f"run.dir={fake.parent}", "--harness", sys.executable]) == 1
    assert "Call make harness" in capsys.readouterr().err


def test_a_benchmark_that_is_stopped_leaves_no_engine(fake: Path) -> None:
    words = ["benchmark", DEMO, f"run.dir={fake.parents[1] / 'run'}", "--harness", fake, "--tasks", "slow"]
    program = subprocess.Popen([*PROGRAM, *map(str, words)], stderr=subprocess.PIPE, text=True, env=environment())
    note = fake.with_name("engine")
    while not (note.exists() and note.read_text()):
        assert program.poll() is None
        time.sleep(0.1)
    engine = psutil.Process(int(note.read_text()))
    program.terminate()
    assert "stopped by SIGTERM" in program.communicate(timeout=60)[1] and program.returncode == 143
    assert not engine.is_running() or engine.status() == psutil.STATUS_ZOMBIE


def test_the_judge_is_asked_for_before_anything_is_measured(
    fake: Path, judge: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """MMBench's task posts to the whole address, MM-Vet's gives the client its beginning."""
    monkeypatch.setenv("OPENAI_API_KEY", "wrong")
    assert benchmark(fake, "--tasks", "mmvet", "--judge-url", judge) == 1
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    assert benchmark(fake, "--tasks", "mmvet", "--judge-url", judge, "--judge-model", "other") == 1
    told = capsys.readouterr().err
    assert f"{judge}: expected a judge that serves a model, found none (HTTP Error 401" in told
    assert f"{judge}: expected a judge that serves other, found none" in told and not called(fake)
    file = fake.with_name("b.yaml")
    file.write_text('benchmarks: [{task: a, judge: ""}, {task: b, judge: /chat/completions}, {task: c}]')
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    assert benchmark(fake, "--benchmarks", str(file), "--judge-url", f"{judge}/") == 0
    first, _, second, _, third, _ = called(fake)
    assert [one["OPENAI_API_URL"] for one in (first, second, third)] == [judge, f"{judge}/chat/completions", None]
    assert (first["MODEL_VERSION"], first["OPENAI_API_KEY"], first["API_TYPE"]) == ("mine", "secret", "openai")
    assert first["HF_TOKEN"] is None and first["HUGGING_FACE_HUB_TOKEN"] == "hf_x"
    rows = read_benchmarks(fake.parents[1] / "run")
    assert [rows[task].scores["teacher"].judge for task in "abc"] == ["mine", "mine", ""]
