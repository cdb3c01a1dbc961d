"""Rollouts by real engines: how busy the flow keeps the teacher's, and what that engine does when driven by itself.

``python -m bench.engines flow FOLDER`` makes the rows of a stage with the demo's settings and a deeper teacher, and
``python -m bench.engines direct FOLDER`` has the same engine write and score the same answers in one loop, with nothing
around it. Both print a line of JSON.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from bench.scale import at
from masters_ray import cluster, store
from masters_ray.config import Config, load
from masters_ray.method.schedule import Stage
from masters_ray.models import weights
from masters_ray.pipeline import inputs, recipes, rollouts
from masters_ray.pipeline.curriculum import Questions
from masters_ray.pipeline.recipes import Recipe
from masters_ray.records import RolloutGroup
from masters_ray.replicas import processes
from masters_ray.replicas.actor import ReplicaActor
from masters_ray.replicas.model import ReplicaModel
from masters_ray.replicas.pool import Pool
from masters_ray.replicas.spawn import Replicas, environment
from masters_ray.replicas.spec import ReplicaSpec, specs

_LAYERS = at(32, 6)
"""Of the teacher: a real pair's teacher costs several times its student and judge."""
_ROWS, _WARM = at((640, 128), (48, 16))
_STAGE = Stage(index=0, ratio=0.1)
_SECONDS_BETWEEN_LOOKS = at(0.25, 0.01)  # the small form makes all its rows within a second


def flow(folder: Path) -> dict[str, Any]:
    """Rows, tokens and busy seconds between the first and the last tenths, when all engines have work."""
    config = _config(folder)
    train, _ = inputs.load(config, folder / "data")
    questions = Questions(config, train, folder)
    with (
        cluster.connected(config.cluster),
        Replicas(_specs(config), _Timed) as replicas,
    ):
        student = weights.digest(weights.locate(config.student.checkpoint))
        recipe = recipes.recipe(config, _STAGE, student, student, {})
        rollouts.roll_out(recipe, questions, range(_WARM), replicas, folder / "warm")
        looks = _Looks(replicas.pools["teacher"], folder / "store")
        rollouts.roll_out(recipe, questions, range(_WARM, _WARM + _ROWS), replicas, folder / "store")
        return looks.between(0.15, 0.85) | {"tokens_per_row": _tokens_per_row(folder)}


def direct(folder: Path) -> dict[str, Any]:
    """The stored rows' questions, answered and scored again by the teacher alone."""
    config = _config(folder)
    teacher, *_ = _specs(config)
    os.environ |= environment(teacher)  # as in a replica's process
    model = ReplicaModel(teacher)
    rows = list(store.read(folder / "store"))
    recipe = recipes.recipe(config, _STAGE, "", "", {})
    _again(model, config, recipe, rows[: _WARM // 4])
    began = time.monotonic()
    tokens = _again(model, config, recipe, rows)
    seconds = time.monotonic() - began
    return {"tokens_per_s": tokens / seconds, "rows_per_s": len(rows) / seconds}


def _again(model: ReplicaModel, config: Config, recipe: Recipe, rows: list[RolloutGroup]) -> int:
    """Tokens of the answers that the teacher writes and scores."""
    k, sampling = config.teacher.top_k, config.rollout.sampling
    prompts: Any = [model.prompt(row.problem) for row in rows]
    seeds = [recipe.seed_of("teacher", row.problem.id) for row in rows]
    written: Any = model.engine.generate(
        prompts, sampling, answers=config.rollout.teacher_answers, seeds=seeds, top_k=k
    )
    others = [
        (index, ids)
        for index, row in enumerate(rows)
        for ids in dict.fromkeys(one.judged.answer.token_ids for one in row.answers)
        if ids not in [own for own, _ in written[index]]
    ]
    model.engine.score([prompts[index] for index, _ in others], [ids for _, ids in others], k)
    return sum(len(one.judged.answer.token_ids) for row in rows for one in row.answers)


class _Timed(ReplicaActor):
    """Adds up the seconds that its engine works."""

    _busy = 0.0

    def busy_seconds(self) -> float:
        return self._busy

    def _load(self, spec: ReplicaSpec) -> None:
        super()._load(spec)
        engine = self._model.engine.loop._llm.llm_engine
        step = engine.step

        def timed() -> Any:
            began = time.monotonic()
            outputs = step()
            self._busy += time.monotonic() - began
            return outputs

        engine.step = timed


class _Looks:
    """How many rows were stored and how long the teacher had worked, at any time."""

    def __init__(self, pool: Pool, folder: Path) -> None:
        self._pool, self._folder = pool, folder
        self._seen: list[tuple[float, int, float]] = []
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        while not self._done.wait(_SECONDS_BETWEEN_LOOKS):
            [busy] = self._pool.everywhere("busy_seconds")
            self._seen.append((time.monotonic(), len(list(self._folder.glob("shard-*.parquet"))), busy))

    def between(self, low: float, high: float) -> dict[str, float]:
        """Between the moments at which these shares of the rows were stored."""
        self._done.set()
        self._thread.join()
        shards = self._seen[-1][1]
        first = next(one for one in self._seen if one[1] >= low * shards)
        last = next(one for one in self._seen if one[1] >= high * shards)
        seconds = last[0] - first[0]
        return {
            "utilisation": (last[2] - first[2]) / seconds,
            "rows_per_s": (last[1] - first[1]) * _ROWS / shards / seconds,
            "seconds": seconds,
        }


def _tokens_per_row(folder: Path) -> float:
    rows = list(store.read(folder / "store"))
    return sum(len(one.judged.answer.token_ids) for row in rows for one in row.answers) / len(rows)


def _config(folder: Path) -> Config:
    teacher = folder / "teacher"
    if not teacher.exists():
        _deepen(Path("examples/toy/pair/teacher"), teacher)
    words = [f"run.dir={folder / 'run'}", f"teacher.checkpoint={teacher}", f"data.train.rows={_ROWS + _WARM}"]
    return load("conf/demo.yaml", [*words, f"rollout.batch_rows={at(16, 4)}"])


def _specs(config: Config) -> list[ReplicaSpec]:
    return specs(config, processes.for_rollouts(config, learned=False), _STAGE.ratio)


def _deepen(source: Path, target: Path) -> None:
    """The same model with further layers that add nothing: as costly as a deep one, and as clever as before."""
    shutil.copytree(source, target)
    content = json.loads((source / "config.json").read_text(encoding="utf-8"))
    text = content["text_config"]
    layers = text["num_hidden_layers"]
    tensors = load_file(source / "model.safetensors")
    for number in range(layers, _LAYERS):
        for name in [one for one in tensors if f".layers.{layers - 1}." in one and "visual" not in one]:
            copied = tensors[name].clone()
            adds = name.endswith(("o_proj.weight", "down_proj.weight"))
            tensors[name.replace(f".layers.{layers - 1}.", f".layers.{number}.")] = (
                torch.zeros_like(copied) if adds else copied
            )
    text["num_hidden_layers"] = _LAYERS
    if "layer_types" in text:
        text["layer_types"] = [text["layer_types"][0]] * _LAYERS
    (target / "config.json").write_text(json.dumps(content), encoding="utf-8")
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})


def main() -> None:
    part, folder = sys.argv[1], Path(sys.argv[2])
    print(json.dumps({"flow": flow, "direct": direct}[part](folder)), flush=True)
    os._exit(0)  # what was printed is all: an engine that is taken down at exit may abort


if __name__ == "__main__":
    main()
