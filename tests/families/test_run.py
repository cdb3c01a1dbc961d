"""A whole run of each family on real parts: a masked teacher and a student answer questions with several pictures, one
and none, the student learns from them and from online rollouts, and an engine loads what it has become."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from masters_ray import config as configuration
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


@pytest.mark.usefixtures("local_ray")
def test_a_whole_run_ends(kind: str, checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    teacher, student = checkpoint(kind, layers=4, seed=1), checkpoint(kind)
    exact = weights.architecture(teacher).family.caches_prefixes
    engine = ENGINE | {"dtype": "float32" if exact else "bfloat16"}
    settings: dict[str, Any] = {
        "run": {"dir": str(tmp_path / "run")},
        "data": {"train": {"path": str(questions(tmp_path, 16))}, "held_out": {"path": str(questions(tmp_path, 4))}},
        "teacher": {"checkpoint": str(teacher), "cpus": 0.5, "top_k": 16, "engine": engine},
        "student": {"checkpoint": str(student), "cpus": 0.5, "engine": engine},
        "judge": {"of_teacher": "rule", "of_student": "rule"},
        "rollout": {"batch_rows": 4, "sampling": {"max_tokens": 8}, "online_fraction": 0.5, "max_cut_share": 1.0},
        "schedule": {"max_ratio": 0.2, "step": 0.2},
        "learner": {"cpus": 0.5, "dtype": "float32", "groups_per_step": 4, "learning_rate": 1e-3},
        "evaluation": {"marked_by": "rule"},
    }
    file = tmp_path / "run.yaml"
    file.write_text(json.dumps(settings))
    config = configuration.load(file)
    directory = RunDirectory(config)
    with directory.locked():
        report = run.run(config, directory, str(file))
    found = json.loads((report.parent / "summary.json").read_text())
    print(json.dumps(found["phases"]), json.loads((report.parent / "journal.json").read_text())["preflight"])
