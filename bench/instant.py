"""Rollouts by replicas that answer at once: what the flow itself costs.

``python -m bench.instant FOLDER ROWS ASKED``: ask the first ASKED of ROWS questions (again, the store goes on), print a
line of JSON. Replicas are Ray actors in their own processes; what they send is made before it is asked for.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from masters_ray import cluster, data, store
from masters_ray.config import Cluster, Config, DataSource, Judge, Rollout
from masters_ray.method.masks import MaskReport
from masters_ray.method.schedule import Stage
from masters_ray.pipeline import rollouts
from masters_ray.pipeline.curriculum import Questions
from masters_ray.pipeline.recipes import Recipe
from masters_ray.records import Answer, Problem
from masters_ray.replicas.actor import Expected, ReplicaActor
from masters_ray.replicas.judge import Verdict
from masters_ray.replicas.model import ScoredBatch, TokenIds, WrittenBatch
from masters_ray.replicas.spawn import Replicas
from masters_ray.replicas.spec import ReplicaSpec
from tests.builders import png, replica_spec, scores

TOP_K = 50
TOKENS = 4
"""Of an answer, as in the demo."""
_MOST = 512
"""Answers of one call."""
_SECONDS_BETWEEN_LOOKS = 0.1


class InstantActor(ReplicaActor):
    """A replica without an engine."""

    def _load(self, spec: ReplicaSpec) -> None:
        self._first: float | None = None
        answers = [scores(TOKENS, k=TOP_K, seed=seed, vocabulary=1000) for seed in range(_MOST)]
        logprobs = [np.full(TOKENS, -1.0, np.float32)] * _MOST
        self._said = {"teacher": store.top_scores(answers), "student": pa.array(logprobs, store.LOGPROBS)}
        self._verdicts = [Verdict(accuracy=index % 2, text="<answer>1</answer>") for index in range(2)]
        self._answers = {
            role: tuple(
                Answer(
                    source=role,  # type: ignore[arg-type]
                    text=f"answer {index}",
                    token_ids=(first + index, *range(TOKENS - 1)),
                    finish="stop",
                )
                for index in range(8)
            )
            for role, first in (("teacher", 10), ("student", 20))
        }

    def mask(self, ratio: float) -> MaskReport:
        return MaskReport(ratio=ratio, sparsity=ratio, digest="d" * 64)

    def call(self, method: str, *arguments: Any, expected: Expected | None = None) -> Any:
        """What ``method`` of a real model would return, of the same size."""
        if method == "first_call":
            return self._first
        self._first = self._first or time.time()
        return getattr(self, f"_{method}")(self._spec.roles[0], *arguments)

    def _answer(self, role: str, problems: list[Problem], sampling: Any, count: int, seeds: Any) -> WrittenBatch:
        answers = [self._answers[role][:count]] * len(problems)
        return WrittenBatch(answers=answers, scored=self._batch(role, problems, len(problems) * count))

    def _score(self, role: str, problems: list[Problem], answers: list[list[TokenIds]]) -> ScoredBatch:
        return self._batch(role, problems, sum(map(len, answers)))

    def _judge(
        self, role: str, problems: list[Problem], answers: list[list[str]], reasoning: bool
    ) -> list[list[Verdict]]:
        return [[self._verdicts[index % 2] for index, _ in enumerate(one)] for one in answers]

    def _batch(self, role: str, problems: list[Problem], count: int) -> ScoredBatch:
        tokens = self._said[role].take(pa.array(range(count)))
        return ScoredBatch(prompt_tokens=[60] * len(problems), refused={}, tokens=tokens)


def main() -> None:
    folder, rows, asked = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    folder.mkdir(parents=True, exist_ok=True)
    source = _source(folder, rows)
    specs = [replica_spec(*roles) for roles in (("teacher",), ("student", "judge"))]
    recipe = Recipe(
        stage=Stage(index=0, ratio=0.2),
        rollout=Rollout(),
        judge=Judge(),
        seed=0,
        student_digest="s" * 64,
        settings={"top_k": TOP_K},
    )
    with cluster.connected(Cluster(local_cpus=4)), Replicas(specs, InstantActor) as replicas:
        began = time.time()
        loaded = data.load([source], 0, 0.01, spool=folder / "train.spool")
        read = time.time() - began
        watch = _Watch(folder / "store")
        questions = Questions(Config(), loaded, folder)
        began = time.time()
        rollouts.roll_out(recipe, questions, range(asked), replicas, folder / "store")
        seconds = time.time() - began
        first = replicas.pools["teacher"].call("first_call")
    print(
        json.dumps(
            {
                "rows": asked,
                "reading": read,
                "seconds": seconds,
                "memory": watch.tenths(),
                "until_first_call": read + (first or began) - began,
            }
        )
    )


class _Watch:
    """The process's own memory while a store grows; kB that no file backs."""

    def __init__(self, folder: Path) -> None:
        self._seen: list[int] = []
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        while not self._done.wait(_SECONDS_BETWEEN_LOOKS):
            self._seen.append(_anonymous())

    def tenths(self) -> list[float]:
        """MiB, the mean of each tenth of the time."""
        self._done.set()
        self._thread.join()
        return [float(np.mean(part)) / 1024 for part in np.array_split(self._seen, 10) if len(part)]


def _anonymous() -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    [line] = [one for one in lines if one.startswith("RssAnon:")]
    return int(line.split()[1])


def _source(folder: Path, rows: int) -> DataSource:
    """Questions about one small picture."""
    file = folder / f"{rows}.jsonl"
    if not file.exists():
        (folder / "picture.png").write_bytes(png())
        with file.open("w", encoding="utf-8") as lines:
            for number in range(rows):
                row = {"id": f"q{number}", "question": f"what color is shape {number}?", "answer": "red"}
                lines.write(json.dumps({**row, "image": "picture.png"}) + "\n")
    return DataSource(path=str(file))


if __name__ == "__main__":
    main()
