"""Held-out accuracy while the student learns, in every kind of run; and a limit on wall time, met again and again."""

import os
import time
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from masters_ray.files import read_lines
from tests.conftest import PAIR
from tests.e2e.learning import state
from tests.e2e.runs import SMALL, long_form, masters_ray, summary

pytestmark = [pytest.mark.e2e, long_form]
FEW = [*SMALL, "data.held_out.rows=12", "evaluation.questions=6"]
ENGINE = "{dtype: float32, max_model_len: 1024, max_num_batched_tokens: 4096, enforce_eager: true}"
TEACHER = f"{{checkpoint: {PAIR / 'teacher'}, cpus: 0.5, top_k: 32, engine: {ENGINE}}}"
GROWN = f"{{teacher: {TEACHER}, schedule: {{max_ratio: 0}}}}"


@pytest.mark.parametrize(
    ("words", "steps"),
    [
        (("rollout.online_fraction=0.5", "rollout.max_staleness=1"), [2, 4, 6]),
        (("rollout.online_fraction=0.5", "schedule.max_ratio=0", "cluster.local_cpus=2"), [2, 4, 6]),
        (("rollout.student_refresh=stage", "evaluation.every=stage"), [2, 4, 6]),
        (("learner.workers=2", "learner.zero_stage=3", "learner.cpus=0.25", "learner.lora.rank=4"), [2, 4, 6]),
        (("schedule.max_ratio=0.1", f"growth=[{GROWN}]", "evaluation.every=3"), [3, 6, 7]),
    ],
    ids=["beside", "turns", "refreshed", "workers", "growth"],
)
def test_the_student_is_measured_on_the_way_in_every_kind_of_run(
    tmp_path: Path, words: tuple[str, ...], steps: list[int]
) -> None:
    chosen = ["evaluation.every=2", "learner.keep=best", *words]
    done = masters_ray("run", "conf/demo.yaml", f"run.dir={tmp_path}", *FEW, *chosen)
    assert done.returncode == 0, done.stdout + done.stderr
    found = summary(tmp_path)
    assert [one["step"] for one in found["course"]] == [0, *steps]
    assert [one["step"] for one in read_lines(tmp_path / "metrics.jsonl")] == list(range(1, steps[-1] + 1))
    assert done.stdout.count("held-out accuracy of step") == 2 * len(steps)
    assert found["kept"]["step"] in steps
    assert not list((tmp_path / "students").glob("step-*/"))
    assert (tmp_path / "student_adapters").exists() == ("learner.lora.rank=4" in words)


def test_a_student_that_was_measured_on_the_way_is_the_same_to_the_bit(tmp_path: Path) -> None:
    for name, words in (("plain", []), ("measured", ["evaluation.every=3"])):
        done = masters_ray("run", "conf/demo.yaml", f"run.dir={tmp_path / name}", *FEW, *words)
        assert done.returncode == 0, done.stdout + done.stderr
    plain, measured = state(tmp_path / "plain" / "student"), state(tmp_path / "measured" / "student")
    assert plain.keys() == measured.keys()
    assert all(torch.equal(plain[name], tensor) for name, tensor in measured.items())


def test_a_run_with_a_limit_on_its_time_ends_by_it_and_gets_further_with_each_call(tmp_path: Path) -> None:
    words = ["conf/demo.yaml", f"run.dir={tmp_path}", "run.stop_after=60s"]
    codes, taken = [], [0]
    while 0 not in codes:
        began = time.monotonic()
        done = masters_ray("run", *words)
        codes.append(done.returncode)
        assert time.monotonic() - began < 90
        assert len(codes) < 8, done.stdout
        if codes[-1] == os.EX_TEMPFAIL:
            assert "stopped after 60s as run.stop_after says; the same command goes on" in done.stderr
        taken.append(len(read_lines(tmp_path / "metrics.jsonl")))
    assert set(codes[:-1]) == {os.EX_TEMPFAIL}
    steps = [one["step"] for one in read_lines(tmp_path / "metrics.jsonl")]
    assert steps == list(range(1, 136))
    assert all(before < after or before in (0, 135) for before, after in pairwise(taken)), "each call takes steps"
    ends = [row["text"] for row in read_lines(tmp_path / "events.jsonl") if row["kind"] == "end"]
    assert ends == ["stopped after 60s as run.stop_after says"] * (len(codes) - 1) + ["finished"]
