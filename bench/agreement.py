"""How far learner and engine are apart on a run's rows, as they are and with their pictures turned: what the bounds of
masters_ray/learner/agreement.py come from.

    masters-ray generate conf/demo.yaml run.dir=runs/agreement data.train.rows=240
    python -m bench.agreement runs/agreement --dtype bfloat16

Engines compute in another format with teacher.engine.dtype=bfloat16 student.engine.dtype=bfloat16.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from masters_ray import store
from masters_ray.data import decode
from masters_ray.kernels.packing import pack
from masters_ray.method.prompts import question_messages
from masters_ray.models import hf
from masters_ray.models.chat import Chat
from masters_ray.records import Picture, RolloutGroup
from tests.conftest import PAIR


def turned(group: RolloutGroup) -> RolloutGroup:
    """The same row with its pictures a quarter of a turn further."""

    def turn(picture: Picture) -> Picture:
        content = io.BytesIO()
        decode(picture).transpose(Image.Transpose.ROTATE_90).save(content, "PNG")
        return Picture(data=content.getvalue())

    pictures = tuple(map(turn, group.problem.pictures))
    return dataclasses.replace(group, problem=dataclasses.replace(group.problem, pictures=pictures))


def gaps(groups: Iterator[RolloutGroup], dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """Mean and largest distance of the log-probabilities of each row's answer tokens, nats."""
    model, chat = hf.load_model(PAIR / "student", dtype), Chat(PAIR / "student")
    student = hf.PackedStudent(model, logits_bytes=2**26)
    means, largest = [], []
    for group in groups:
        pictures = [decode(picture) for picture in group.problem.pictures]
        prompt = hf.prompt_tensors(model, chat, question_messages(group.problem), pictures)
        batch = pack([group], [prompt], pad_id=0)
        with torch.no_grad():
            own, *_ = student(batch)
        distance = (own - batch.reference_logprobs).abs()
        means.append(float(distance.mean()))
        largest.append(float(distance.max()))
    return np.array(means), np.array(largest)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--dtype", default="float32")
    asked = parser.parse_args()
    folders = sorted((asked.run / "rollouts").iterdir())
    rows = [group for folder in folders for group in store.read(folder)]
    for name, change in (("as they are", lambda group: group), ("turned", turned)):
        means, largest = gaps(map(change, rows), asked.dtype)
        for what, values in (("mean over a row's tokens", means), ("largest of a row's tokens", largest)):
            shares = np.percentile(values, [1, 5, 10, 25, 50, 90, 99, 100])
            print(f"{name}, {what}, percentiles 1 5 10 25 50 90 99 100:", *(f"{one:.2g}" for one in shares))
        if change is turned:
            for bound in (1e-3, 3e-3, 0.01, 0.02, 0.03, 0.05, 0.1, 0.3):
                print(f"turned rows above {bound:g}: {np.mean(means > bound):.1%}")


if __name__ == "__main__":
    main()
