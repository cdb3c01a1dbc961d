"""Groups of the store → batches of one model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from masters_ray import attention
from masters_ray.data import decode
from masters_ray.engines import hf
from masters_ray.engines.chat import Chat
from masters_ray.packing import PackedBatch, PromptTensors, pack, unreadable
from masters_ray.prompts import question_messages
from masters_ray.records import RolloutGroup


class Packer:
    """Reads each group's question and pictures as the model wants them."""

    def __init__(self, checkpoint: Path, model: Any, device: torch.device, dtype: torch.dtype) -> None:
        self._model = model
        self._chat = Chat(checkpoint)
        self._multiple = 128 if attention.kernel_for(device, dtype) == "flex" else 1
        self._pad_id = self._chat.tokenizer.pad_token_id or 0
        self._vocabulary: int = model.config.get_text_config().vocab_size
        self.unfit: dict[tuple[int, int], str] = {}
        """Stage and position of stored rows that nothing shall be learned from, and why."""

    def pack(self, groups: Sequence[RolloutGroup]) -> PackedBatch:
        """One batch of these groups, on the CPU. Raises UnreadableRowError for the first that cannot be read: a picture
        is gone, the prompt has not as many tokens as the engine read, the processor fails on it, it is ``unfit``."""
        return pack(groups, [self._prompt(group) for group in groups], self._pad_id, self._multiple)

    def _prompt(self, group: RolloutGroup) -> PromptTensors:
        place = (group.stage, group.position)
        if group.version is None and place in self.unfit:
            raise unreadable(group, self.unfit[place])
        try:
            pictures = [decode(picture) for picture in group.problem.pictures]
            prompt = hf.prompt_tensors(self._model, self._chat, question_messages(group.problem), pictures)
        except MemoryError:
            raise
        except Exception as error:  # a processor raises what it likes
            told = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise unreadable(group, f"the processor cannot read its question or pictures ({told})") from error
        if len(prompt.input_ids) != group.prompt_tokens:
            raise unreadable(
                group,
                f"expected a prompt of {group.prompt_tokens} tokens, as the engine read it, found "
                f"{len(prompt.input_ids)}. Did its pictures or the student's processor files change since?",
            )
        largest = max((token for one in group.answers for token in one.judged.answer.token_ids), default=0)
        if largest >= self._vocabulary:
            raise unreadable(group, f"an answer has token {largest}; the student knows {self._vocabulary} tokens")
        return prompt
