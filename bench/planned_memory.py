"""What a learner worker allocates on a CPU, beside what the plan says: ``python -m bench.planned_memory CHECKPOINT
key=value…`` prints both in bytes. Keys: those of ``learner``; groups, tokens: of a micro-batch, of an answer."""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import sys
from pathlib import Path
from typing import Any

import torch

from bench.memory import allocated
from masters_ray.config import Learner, Reward
from masters_ray.learner.collate import Collator
from masters_ray.learner.engine import StudentEngine
from masters_ray.method.grpo import group_losses
from masters_ray.models import hf
from masters_ray.plan.memory import learner_bytes
from masters_ray.records import Picture, Problem
from tests.builders import group, png, scored

_UPDATES, _MICRO_BATCHES = 2, 2


def measured(folder: Path, settings: Learner, groups: int, tokens: int) -> tuple[int, int]:
    """(bytes allocated at the worst moment of two updates, tokens of a micro-batch)."""
    sizes = []

    def learn() -> None:
        model = hf.load_model(folder, settings.dtype)
        cpu, dtype = torch.device("cpu"), getattr(torch, settings.dtype)
        collator = Collator(folder, model, cpu, dtype)
        hf.freeze(model, settings.frozen)
        student = hf.PackedStudent(model.train(), settings.logits_mib * 2**20)
        if settings.activation_checkpointing:
            hf.checkpoint_activations(model)
        engine = StudentEngine(student, settings, cpu)
        rows = [_group(place, tokens) for place in range(groups)]
        batch = collator.batch(rows, [collator.prompt_of(row) for row in rows])
        sizes.append(batch.layout.length)
        for _ in range(_UPDATES):
            for _ in range(_MICRO_BATCHES):
                outputs = group_losses(settings, Reward(), batch, engine(batch), 8.0, None)
                engine.add_gradient(outputs.loss.sum())
                del outputs
            engine.update(1e-3)

    return allocated(learn), sizes[0]


def _group(place: int, tokens: int) -> Any:
    answers = [scored([20 + (7 * one + t) % 500 for t in range(tokens)] + [1], seed=one) for one in range(8)]
    asked = Problem(id=str(place), question="what is it?", label="red", pictures=(Picture(data=png()),))
    return group(answers, position=place, of=asked)


if __name__ == "__main__":
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    os.environ |= {"MASTER_PORT": str(port), "DS_ACCELERATOR": "cpu"}
    place = Path(sys.argv[1])
    words = {name: json.loads(value) for name, value in (word.split("=") for word in sys.argv[2:])}
    counts = {"groups": words.pop("groups", 8), "tokens": words.pop("tokens", 40)}
    chosen = Learner(dtype="float32", **words)
    found, length = measured(place, chosen, **counts)
    said = learner_bytes(dataclasses.replace(chosen, tokens_per_micro_batch=length), place)
    print(json.dumps({"allocated": found, "planned": said.device, "parts": vars(said)}))
