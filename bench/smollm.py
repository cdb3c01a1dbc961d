"""Next-token distributions of a real language model, SmolLM2-135M, on this project's own documentation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.utils import prune

from bench.scale import at
from examples.real_weights import pretrained

_TEXTS = ("README.md", "docs/METHOD.md", "docs/LEARNER.md")
_WINDOW = at(1024, 256)
_WINDOWS = at(6, 1)
_PRUNED = 0.3


@dataclass(frozen=True, kw_only=True)
class Distributions:
    """float32 [tokens, vocabulary], log-probabilities at the same tokens."""

    teacher: np.ndarray
    student: np.ndarray


def distributions() -> Distributions:
    """The model as it is for a teacher, and with the smallest 30 % of its layers' weights zeroed for a student."""
    model = pretrained.load_model()
    tokenizer = pretrained.load_tokenizer()
    text = "\n".join(Path(name).read_text(encoding="utf-8") for name in _TEXTS)
    ids = torch.tensor(tokenizer(text)["input_ids"][: _WINDOW * _WINDOWS]).split(_WINDOW)
    teacher = _logprobs(model, ids)
    for module in model.model.layers.modules():
        if isinstance(module, torch.nn.Linear):
            prune.l1_unstructured(module, "weight", amount=_PRUNED)
    return Distributions(teacher=teacher, student=_logprobs(model, ids))


@torch.no_grad()
def _logprobs(model: Any, windows: tuple[torch.Tensor, ...]) -> np.ndarray:
    return np.concatenate([model(ids.unsqueeze(0)).logits[0].log_softmax(-1).numpy() for ids in windows])
