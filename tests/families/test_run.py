"""A whole run of each family on real parts: a masked teacher and a student answer questions with several pictures, one
and none, the student learns from them and from online rollouts, and an engine loads what it has become."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest

from masters_ray import config as configuration
from masters_ray.config import HardCheck
from masters_ray.models import weights
from masters_ray.pipeline import run
from masters_ray.pipeline.run_dir import RunDirectory
from tests.builders import png
from tests.families.test_learner import SIZES

ENGINE = {
    "dtype": "float32",
    "max_model_len": 1024,
    "max_num_seqs": 16,
    "max_num_batched_tokens": 2048,
    "kv_cache_memory_bytes": 2**26,
    "enforce_eager": True,
    "max_pictures": 2,
}


def questions(folder: Path, count: int) -> Path:
    rows = []
    for number in range(count):
        names = []
        for place, size in enumerate(SIZES[number % len(SIZES)]):
            names.append(f"{number}-{place}.png")
            (folder / names[-1]).write_bytes(png(size))
        rows.append({"id": str(number), "question": f"what shape is number {number}?", "answer": "red", "image": names})
    file = folder / f"{count}.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


STUDENTS = {"qwen3_vl_moe": "qwen3_vl", "internvl/qwen3_moe": "internvl/qwen3"}
"""Mixtures are teachers: engines do not take their weights in while they run."""
SHORT = ("qwen3_vl_moe",)
"""A mixture, whose engine is masked anew by a restart; make test-long runs the others."""
LOOSE = {"gemma3": ("pictures",), "qwen3_5": ("agreement", "pictures", "remask")}
"""What engines on CPUs do otherwise than transformers: pictures that see themselves both ways, bfloat16 recurrences."""


@pytest.mark.usefixtures("local_ray")
def test_a_whole_run_ends(kind: str, checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    if kind not in SHORT and "MASTERS_LONG" not in os.environ:
        pytest.skip("part of make test-long")
    teacher, student = checkpoint(kind, layers=4, seed=1), checkpoint(STUDENTS.get(kind, kind))
    known = weights.architecture(teacher)
    number = "float32" if known.family.caches_prefixes else "bfloat16"
    engine = ENGINE | {"dtype": number}
    settings: dict[str, Any] = {
        "run": {"dir": str(tmp_path / "run"), "skip_checks": [*LOOSE.get(kind, ())]},
        "data": {"train": {"path": str(questions(tmp_path, 16))}, "held_out": {"path": str(questions(tmp_path, 4))}},
        "teacher": {"checkpoint": str(teacher), "cpus": 0.5, "top_k": 16, "engine": engine},
        "student": {"checkpoint": str(student), "cpus": 0.5, "engine": engine},
        "judge": {"of_teacher": "rule", "of_student": "rule"},
        "rollout": {"batch_rows": 4, "sampling": {"max_tokens": 8}, "max_cut_share": 1.0},
        "schedule": {"max_ratio": 0.2, "step": 0.2},
        "learner": {"cpus": 0.5, "dtype": number, "groups_per_step": 4, "learning_rate": 1e-3},
        "evaluation": {"marked_by": "rule"},
    }
    settings["rollout"] |= {"online_fraction": 0.5, "max_staleness": 0}
    settings["learner"] |= {"max_logprob_gap": 0.5} if kind in LOOSE else {}
    file = tmp_path / "run.yaml"
    file.write_text(json.dumps(settings))
    config = configuration.load(file)
    directory = RunDirectory(config)
    with directory.locked():
        report = run.run(config, directory, str(file))
    found, journal = (json.loads((report.parent / f"{name}.json").read_text()) for name in ("summary", "journal"))
    checked = {name: one["verdict"] for name, one in journal["preflight"].items()}
    assert checked == {name: "passed" for name in get_args(HardCheck) if name not in LOOSE.get(kind, ())}
    assert [sum(stage["masked"].values()) for stage in found["stages"]] == [known.expected()["language"]] * 2
    assert found["learner"]["steps"] == 4 and found["learner"]["left_out"] == 0
    fresh = [json.loads(line)["fresh"] for line in directory.file("metrics.jsonl").read_text().splitlines()]
    assert sum(fresh) == 8, "two iterations, the second by a student that has learned"
    assert found["accuracy"]["student_after"]["n"] == 4
    assert weights.headers(directory.student).keys() == weights.headers(student).keys()
