"""``manifest.json`` of the pair: how each model was made, what its files are, and how well they answer."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer

from examples import easy_vqa
from examples.toy import models
from examples.toy.evaluate import judge_agreement, question_accuracy
from examples.toy.examples import QuestionPrompts, draw_triple
from examples.toy.pictures import read_pictures

FILE = "manifest.json"
PACKAGES = ("easy-vqa", "numpy", "pillow", "safetensors", "tokenizers", "torch", "transformers")
JUDGED = 1000
"""Triples the agreement of a judge is measured on; drawn under a seed of their own."""
JUDGE_SEED = 90210


def file_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of ``folder`` by name."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def describe(folder: Path, asked: int | None = None, judged: int = JUDGED) -> dict[str, Any]:
    """What the model saved in ``folder`` is and can do, measured on the saved (bfloat16) weights in float32.

    ``asked`` bounds the problems of each kind, ``judged`` is the number of judged triples; with 0 nothing is said of it
    as a judge.
    """
    model = models.load(folder)
    questions = QuestionPrompts(AutoTokenizer.from_pretrained(folder))
    pictures = read_pictures("test")
    row_of = {int(number): row for row, number in enumerate(pictures.numbers)}
    accuracy: dict[str, Any] = {}
    for kind in easy_vqa.KINDS:
        problems = easy_vqa.problems("test", [kind])[:asked]
        rows = torch.tensor([row_of[int(problem.id.split("/")[1])] for problem in problems])
        right, count = question_accuracy(model, questions, problems, pictures.pixels[rows])[kind]
        accuracy[kind] = {"right": right, "n": count, "accuracy": round(right / count, 4)}
    accuracy["balanced_mean"] = round(sum(accuracy[kind]["accuracy"] for kind in easy_vqa.KINDS) / 3, 4)
    described: dict[str, Any] = {
        "parameters": models.parameters(model),
        "bytes": sum(path.stat().st_size for path in folder.iterdir()),
        "accuracy": accuracy,
        "sha256": file_hashes(folder),
    }
    if judged:
        random = np.random.default_rng(JUDGE_SEED)
        triples = [draw_triple(questions, random) for _ in range(judged)]
        agreement = judge_agreement(model, questions.tokenizer, triples)
        described["judge"] = {"n": judged, **{call: round(share, 4) for call, share in agreement.items()}}
    return described


def update(pair: Path, name: str, entry: dict[str, Any], about: str, packages: Sequence[str]) -> None:
    """Replace what the manifest of ``pair`` says of one model, whole or not at all."""
    path = pair / FILE
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    known["about"] = about
    known["packages"] = {package: version(package) for package in packages}
    known.setdefault("models", {})[name] = entry
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps(known, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    os.replace(fresh, path)
