"""Groups of the store → batches of one model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from masters_ray import attention
from masters_ray.data import BadPictureError, decode
from masters_ray.engines import hf
from masters_ray.engines.chat import Chat
from masters_ray.errors import LearnerError
from masters_ray.packing import PackedBatch, pack
from masters_ray.prompts import question_messages
from masters_ray.records import RolloutGroup


class Packer:
    """Reads each group's question and pictures as the model wants them."""

    def __init__(self, checkpoint: Path, model: Any, device: torch.device, dtype: torch.dtype) -> None:
        self._model = model
        self._chat = Chat(checkpoint)
        self._multiple = 128 if attention.kernel_for(device, dtype) == "flex" else 1
        self._pad_id = self._chat.tokenizer.pad_token_id or 0

    def pack(self, groups: Sequence[RolloutGroup]) -> PackedBatch:
        """One batch of these groups, on the CPU. Raises LearnerError when a picture is gone, or when a prompt has not
        as many tokens as the engine read."""
        prompts = []
        for group in groups:
            try:
                pictures = [decode(picture) for picture in group.problem.pictures]
            except BadPictureError as error:
                raise LearnerError(
                    f"{group.problem.id}: {error}. Its row was stored with it: put it back, or make stores that hold "
                    "the pictures themselves (rollout.pictures=embed)."
                ) from error
            prompt = hf.prompt_tensors(self._model, self._chat, question_messages(group.problem), pictures)
            if len(prompt.input_ids) != group.prompt_tokens:
                raise LearnerError(
                    f"{group.problem.id}: expected a prompt of {group.prompt_tokens} tokens, as the engine read it, "
                    f"found {len(prompt.input_ids)}. Do engine and learner use the same processor files?"
                )
            prompts.append(prompt)
        return pack(groups, prompts, self._pad_id, self._multiple)
