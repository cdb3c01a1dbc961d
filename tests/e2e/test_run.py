"""The whole run through the program, on a source of which every tenth row has a fault: stopped by a signal, and taken
up again with more replicas, as a job on a cluster."""

import contextlib
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from masters_ray import store
from masters_ray.files import read_lines
from tests.conftest import PAIR, ROOT
from tests.e2e import faulty
from tests.e2e.complaints import complaints
from tests.e2e.nodes import ADDRESS, two_nodes
from tests.e2e.runs import PROGRAM, SMALL, environment, masters_ray, summary

pytestmark = pytest.mark.e2e
DEMO = "conf/demo.yaml"


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A run at its end, and the source that it was given."""

    folder: Path
    words: list[str]
    """It was called with them."""
    good: set[str]
    """Ids of the rows without a fault."""
    bad: dict[str, faulty.Fault]
    """The others, by what quarantine.jsonl calls them."""


def _listening(parent: psutil.Process) -> set[str]:
    """Addresses at which a process and its descendants listen."""
    found = set()
    for one in [parent, *parent.children(recursive=True)]:
        with contextlib.suppress(psutil.Error):
            sockets = [at for at in one.net_connections(kind="inet") if at.status == psutil.CONN_LISTEN]
            found |= {at.laddr.ip.removeprefix("::ffff:") for at in sockets}
    return found


@pytest.fixture(scope="module")
def cluster() -> Iterator[dict[str, str]]:
    """The environment that reaches a cluster of this module's own."""
    with two_nodes() as reach:
        yield reach


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Finished:
    """A run that was terminated after its first stage, and then finished by a job with more replicas."""
    place = tmp_path_factory.mktemp("runs")
    folder = place / "lr=1e-3 #%20:ü"
    rows, good, bad = faulty.write(place / "data")
    source = [f"data.train.path={rows}", "data.train.rows=null"]
    source += ["data.max_quarantined_share=0.12", "learner.groups_per_step=10", "learner.tokens_per_micro_batch=800"]
    words = [DEMO, f"run.dir={folder}", *SMALL, *source, "evaluation.marked_by=judge"]
    words += ["evaluation.every=15", "evaluation.questions=12", "learner.keep=best"]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([*PROGRAM, "run", *words], cwd=ROOT, env=environment(), **pipes) as process:
        first = folder / "rollouts" / "stage-0" / "manifest.json"
        deadline = time.monotonic() + 300
        while not first.exists():
            assert process.poll() is None, process.stderr.read() if process.stderr else ""
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert _listening(psutil.Process(process.pid)) == {"127.0.0.1"}
        process.terminate()
        _, told = process.communicate(timeout=60)
    assert process.returncode == 143, told
    assert told == "masters-ray: stopped by SIGTERM; the same command goes on from what is finished.\n"
    assert not (folder / "summary.json").exists()
    written = first.stat().st_mtime_ns
    more = "teacher.replicas=2"
    again = masters_ray("submit", *ADDRESS, *words, more, **request.getfixturevalue("cluster"))
    assert again.returncode == 0, again.stdout + again.stderr
    assert ": 4 CPUs, 0 GPUs" in again.stdout, "one of the head node, three of the other"
    assert again.stdout.splitlines()[-1].endswith("succeeded")
    assert first.stat().st_mtime_ns == written, "the finished stage was made again"
    assert "rollouts at mask ratio 0.2" not in again.stdout
    return Finished(folder=folder, words=words, good=good, bad=bad)


def test_the_summary_says_what_came_out(finished: Finished) -> None:
    found = summary(finished.folder)
    for name in ("teacher", "student_before", "student_after"):
        accuracy = found["accuracy"][name]
        assert accuracy["n"] == 48
        assert 0 <= accuracy["low"] <= accuracy["value"] <= accuracy["high"] <= 1
        assert set(accuracy["by_kind"]) == {"colour", "shape", "place"}
    assert sum(stage["rows"] for stage in found["stages"]) == len(finished.good)
    assert [round(stage["sparsity"], 4) for stage in found["stages"]] == [0.2, 0.1, 0.0]
    answers = found["answers"]
    assert answers["answers"] == len(finished.good) * 8
    assert answers["compared"] == answers["answers"] - answers["unjudged"]
    assert answers["judge_rule_agreements"] > 0.9 * answers["compared"]
    for stage in found["stages"]:
        assert all(0 <= stage[f"{who}_cut"] < stage[f"{who}_written"] / 2 for who in ("teacher", "student"))
    assert [one["stage"] for one in found["learner"]["agreement"]] == [0, 1, 2]
    assert all(0 < one["mean_gap"] < 1e-4 < one["bound"] for one in found["learner"]["agreement"])
    assert found["learner"]["left_out"] == 0
    assert found["learner"]["groups"] == len(finished.good)
    assert found["train"]["quarantined"] == sum(fault.kind != "engine" for fault in finished.bad.values())
    assert found["wall_seconds"] >= sum(found["phases"].values()) * 0.9


def test_the_student_was_measured_on_the_way_and_the_better_one_is_kept(finished: Finished) -> None:
    found = summary(finished.folder)
    last = read_lines(finished.folder / "metrics.jsonl")[-1]["step"]
    assert 15 < last < 30
    points = {one["step"]: one["accuracy"] for one in found["course"]}
    assert list(points) == [0, 15, last]
    assert [one["n"] for one in points.values()] == [12] * 3
    assert all(set(one["by_kind"]) == {"colour", "shape", "place"} for one in points.values())
    _, best = max((one["value"], step) for step, one in points.items() if step)
    kept = found["kept"]
    assert (kept["step"], kept["questions"], kept["others_before"]["n"], kept["others_after"]["n"]) == (
        best,
        12,
        36,
        36,
    )
    chosen, others = points[best]["by_kind"], kept["others_after"]["by_kind"]
    for kind, one in found["accuracy"]["student_after"]["by_kind"].items():
        assert one["value"] * 16 == pytest.approx(chosen[kind]["value"] * 4 + others[kind]["value"] * 12)
    assert sorted(path.name for path in (finished.folder / "students").iterdir()) == [
        "step-15.json",
        f"step-{last}.json",
    ]
    ends = [row["text"] for row in read_lines(finished.folder / "events.jsonl") if row["kind"] == "end"]
    assert ends[-2:] == ["stopped by SIGTERM", "finished"]
    assert f"The result is the student of step {best}" in " ".join(
        (finished.folder / "report.html").read_text().split()
    )


def test_the_run_leaves_a_student_a_report_and_events(finished: Finished) -> None:
    from masters_ray.models import hf

    run, source, own = finished.folder, PAIR / "student", {"model.safetensors", "config.json"}
    assert sum(parameter.numel() for parameter in hf.load_model(run / "student", "float32").parameters()) > 1e5
    beside = {file.name for file in source.iterdir()} - own
    assert all((run / "student" / name).read_bytes() == (source / name).read_bytes() for name in beside)
    assert {file.name for file in (run / "student").iterdir()} == {*beside, *own, "README.md"}
    assert "<html" in (run / "report.html").read_text()
    assert list((run / "tensorboard").glob("events.*"))
    steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert sum(step["groups"] for step in steps) == len(finished.good)
    assert all(0 < step["jsd_error_bound"] < step["jsd"] for step in steps)
    shown = [json.loads(line) for line in (run / "rewards.jsonl").read_text().splitlines()]
    assert [row["step"] for row in shown] == [step["step"] for step in steps for _ in range(min(2, step["groups"]))]


def test_every_figure_of_the_report_is_that_of_the_run_s_files(finished: Finished, tmp_path: Path) -> None:
    """Also that a figure which is not would be found: one of a table, and one of a curve."""
    assert complaints(finished.folder) == []
    changed = tmp_path / "run"
    shutil.copytree(finished.folder, changed, ignore=shutil.ignore_patterns("learner", "student"))
    page = (changed / "report.html").read_text()
    optimizer = f"{len((changed / 'metrics.jsonl').read_text().splitlines())} in "
    (changed / "report.html").write_text(page.replace(optimizer, f"1{optimizer}"))
    assert {one.split(":")[0] for one in complaints(changed)} == {"run"}
    steps = [json.loads(line) for line in (changed / "metrics.jsonl").read_text().splitlines()]
    steps[2]["jsd"] *= 1.5
    (changed / "report.html").write_text(page)
    (changed / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in steps))
    assert "jsd at step 3" in "".join(complaints(changed))


def test_each_row_with_a_fault_is_in_quarantine_with_its_reason_and_the_student_learned_from_the_others(
    finished: Finished,
) -> None:
    lines = (finished.folder / "quarantine.jsonl").read_text().splitlines()
    found = {row["row"]: row for row in map(json.loads, lines)}
    assert len(lines) == len(found) == faulty.ROWS // faulty.EVERY
    told = {name: (row["kind"], finished.bad[name].reason in row["reason"]) for name, row in found.items()}
    assert told == {name: (fault.kind, True) for name, fault in finished.bad.items()}
    rows = [row.problem.id for folder in (finished.folder / "rollouts").iterdir() for row in store.read(folder)]
    assert sorted(rows) == sorted(finished.good)


def test_a_finished_run_is_not_run_again_and_other_settings_are_refused(finished: Finished) -> None:
    file = finished.folder / "summary.json"
    before = file.read_bytes()
    same = masters_ray("run", *finished.words)
    assert same.returncode == 0, same.stderr
    assert "holds this run, finished" in same.stdout
    assert file.read_bytes() == before
    other = masters_ray("run", *finished.words, "learner.learning_rate=1e-5")
    assert other.returncode == 1
    assert "learner.learning_rate: expected 0.0005, as in the run" in other.stderr


def test_a_job_that_fails_returns_non_zero_and_ends_with_the_cause(cluster: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"question": "what?", "answer": "red", "image": "none.png"}\n')
    words = [f"data.train.path={tmp_path / 'rows.jsonl'}", *SMALL]
    done = masters_ray("submit", *ADDRESS, DEMO, f"run.dir={tmp_path / 'run'}", *words, **cluster)
    assert done.returncode == 1, done.stdout + done.stderr
    last = done.stdout.splitlines()[-4:]
    assert any("picture" in line and "none.png does not exist" in line for line in last), last
    assert last[-1].endswith("failed")
