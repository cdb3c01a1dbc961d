"""Chat template, tokenizer and processor of a checkpoint: messages ↔ token ids, pictures → pixels."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from masters_ray.errors import CheckpointError
from masters_ray.prompts import Message


class Chat:
    """What a model's prompts are made with. Text and token ids may be asked for from several threads."""

    def __init__(self, folder: Path) -> None:
        """Raises CheckpointError when the processor cannot be loaded or has no chat template."""
        from transformers import AutoProcessor

        try:
            self.processor: Any = AutoProcessor.from_pretrained(folder)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{folder}: the processor cannot be loaded: {error}") from error
        self.tokenizer: Any = self.processor.tokenizer
        template = getattr(self.processor, "chat_template", None) or self.tokenizer.chat_template
        if not template:
            raise CheckpointError(
                f"{folder}: expected a chat template, found none. Use an instruction-tuned checkpoint."
            )
        self._one_at_a_time = threading.Lock()  # a fast tokenizer cannot be used by two threads at once
        self._no_thinking = {"enable_thinking": False} if "enable_thinking" in str(template) else {}

    def text(self, messages: Sequence[Message]) -> str:
        """The prompt as text, up to where the assistant starts; one placeholder per picture; no think format."""
        return self.processor.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=True, **self._no_thinking
        )

    def token_ids(self, messages: Sequence[Message]) -> list[int]:
        """The prompt as token ids with one placeholder per picture, not yet expanded (what vLLM wants)."""
        text = self.text(messages)
        with self._one_at_a_time:
            return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def inputs(self, messages: Sequence[Message], pictures: Sequence[Image.Image]) -> dict[str, Any]:
        """The prompt as the model's forward wants it: placeholders expanded, pixels beside; batch of one, torch."""
        return dict(self.processor(text=[self.text(messages)], images=list(pictures) or None, return_tensors="pt"))

    def answer_ids(self, text: str) -> tuple[int, ...]:
        """An answer's text as token ids, without the end of the turn."""
        with self._one_at_a_time:
            return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def placeholder_ids(self) -> list[int]:
        """Tokens that stand for pictures or videos: an answer must not contain them."""
        names = [getattr(self.processor, name, None) for name in ("image_token", "video_token")]
        return [self.tokenizer.convert_tokens_to_ids(name) for name in names if name]

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text without special tokens."""
        with self._one_at_a_time:
            return self.tokenizer.decode(list(token_ids), skip_special_tokens=True).strip()
