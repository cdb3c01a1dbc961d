"""Chat template, tokenizer and processor of a checkpoint: encodes messages and pictures, decodes token ids."""

import re
import threading
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from PIL import Image

from masters_ray.data import special_in
from masters_ray.errors import CheckpointError
from masters_ray.method.prompts import Message
from masters_ray.models import weights

_PROBE = "masters 0 probe"
_TODAY = datetime(2026, 1, 1, 12)
"""Fixed time for templates that ask for it: engine and learner render the same prompt on different days."""
_HIDDEN = re.compile("\ufdd0(\\d+)\ufdd1")
"""Placeholder of a text while the template is rendered: its number between two noncharacters."""


class Chat:
    """Makes a model's prompts. Methods for text and token ids are thread-safe.

    A prompt starts with the tokenizer's start token, which is added if the template does not write it.
    """

    def __init__(self, folder: Path) -> None:
        """Raises CheckpointError for a processor that cannot be loaded, or without a template of pictures and texts."""
        self.folder = folder
        self.processor: Any = _processor(folder)
        self.tokenizer: Any = self.processor.tokenizer
        self._one_at_a_time = threading.Lock()  # a fast tokenizer is not thread-safe
        self._special = weights.special_tokens([folder])
        for token in self.tokenizer.added_tokens_decoder.values():
            if re.fullmatch(self._special, token.content) and not token.special:
                token.special = True  # so that split_special_tokens applies to it
                self.tokenizer.backend_tokenizer.add_special_tokens([token])
        whole, bare = self.tokenizer("a")["input_ids"], self._encoded("a")
        before = next((place for place in range(len(whole)) if whole[place : place + len(bare)] == bare), 0)
        self.start: list[int] = whole[:before]
        """Ids that the tokenizer adds before a text by default: the start token, or nothing."""
        self._start_text = "".join(self.tokenizer.convert_ids_to_tokens(self.start))
        self._prepare_template()

    def _prepare_template(self) -> None:
        template = getattr(self.processor, "chat_template", None) or self.tokenizer.chat_template
        if not template:
            raise CheckpointError(f"{self.folder}: has no chat template. Use an instruction-tuned checkpoint.")
        self._filled_in: dict[str, Any] = {"enable_thinking": False} if "enable_thinking" in str(template) else {}
        if isinstance(template, str) and "strftime_now" in template:
            template = "{%- set strftime_now = clock_that_stands -%}" + template
            self._filled_in["clock_that_stands"] = _TODAY.strftime
        self.processor.chat_template = template  # older checkpoints have it in tokenizer_config.json
        system, user = ({"role": role, "content": _PROBE} for role in ("system", "user"))
        if not _shows_probe(self._rendered([user])):
            wanted = "a chat template that takes a list of pictures and texts, found one that leaves the texts out"
            raise CheckpointError(f"{self.folder}: expected {wanted}. Use that of the model's processor")
        self._takes_system = _shows_probe(self._tried([system, {"role": "user", "content": "x"}]))

    def text(self, messages: Sequence[Message]) -> str:
        """Returns the prompt as text, up to the assistant's turn, with one placeholder per picture; thinking disabled.
        If the template rejects system turns, the system text becomes the first paragraph of the user's turn."""
        turns = list(messages)
        if turns[0]["role"] == "system" and not self._takes_system:
            system, user = turns[:2]
            turns[:2] = [user | {"content": f"{system['content']}\n\n{user['content']}"}]
        text = self._rendered(turns)
        return self._start_text + text.removeprefix(self._start_text)

    def token_ids(self, messages: Sequence[Message]) -> list[int]:
        """Returns the prompt's token ids with one placeholder per picture, not expanded, as vLLM takes it. A special
        token in a message of text alone is encoded as ordinary text; messages with pictures must hold none."""
        shown, hidden = list(messages), list[str]()
        for place, message in enumerate(messages):
            content = message["content"]
            if isinstance(content, str) and (special_in(content, self._special) or _HIDDEN.search(content)):
                shown[place] = message | {"content": f"\ufdd0{len(hidden)}\ufdd1"}
                hidden.append(content)
        text = self.text(shown)
        if not hidden:
            return self._encoded(text)
        found = []
        for index, piece in enumerate(re.split(f"({self._special})", text)):  # alternately text and special token
            whole = _HIDDEN.sub(lambda number: hidden[int(number[1])], piece)
            found += self._encoded(whole, split_special_tokens=index % 2 == 0)
        return found

    def inputs(self, messages: Sequence[Message], pictures: Sequence[Image.Image]) -> dict[str, Any]:
        """Returns the inputs of the model's forward, torch, batch of 1: ids with placeholders expanded, and pixels.
        Texts must hold no special token: the processor might take one for a picture."""
        options: dict[str, Any] = {"add_special_tokens": False, "return_tensors": "pt"}
        return dict(self.processor(text=[self.text(messages)], images=list(pictures) or None, **options))

    def answer_ids(self, text: str) -> tuple[int, ...]:
        """Returns the token ids of an answer's text, without the end-of-turn token."""
        return tuple(self._encoded(text))

    def placeholder_ids(self) -> list[int]:
        """Returns the ids of picture, video and audio placeholders, ascending: an answer must not contain them."""
        vocabulary = self.tokenizer.get_vocab()
        found: set[int | None] = {*weights.placeholder_ids(self.folder)}
        for kind in ("image", "video", "audio"):
            found.add(vocabulary.get(getattr(self.processor, f"{kind}_token", None)))
            found.add(getattr(self.processor, f"{kind}_token_id", None))
        return sorted(token_id for token_id in found if token_id is not None)

    def turn_end(self) -> int | None:
        """Returns the id of the special token that the template writes after an assistant's turn, or None."""
        turns = [{"role": role, "content": _PROBE} for role in ("user", "assistant")]
        after = self._tried(turns, asks=False).rpartition(_PROBE)[2]
        found = re.search(self._special, after)
        return self.tokenizer.get_vocab().get(found.group()) if found else None

    def decode(self, token_ids: Sequence[int]) -> str:
        """Returns the text of token ids, stripped and without special tokens."""
        with self._one_at_a_time:
            return self.tokenizer.decode(list(token_ids), skip_special_tokens=True).strip()

    def _encoded(self, text: str, *, split_special_tokens: bool = False) -> list[int]:
        with self._one_at_a_time:
            found = self.tokenizer(text, add_special_tokens=False, split_special_tokens=split_special_tokens)
        return list(found["input_ids"])

    def _rendered(self, messages: Sequence[Message], *, asks: bool = True) -> str:
        contents = [message["content"] for message in messages]
        parts = [[{"type": "text", "text": one}] if isinstance(one, str) else one for one in contents]
        turns = [message | {"content": own} for message, own in zip(messages, parts, strict=True)]
        options = self._filled_in | {"tokenize": False, "add_generation_prompt": asks}
        try:
            return str(self.processor.apply_chat_template(turns, **options))
        except Exception as error:  # templates raise errors of any kind
            told = f"its chat template does not take the messages: {error}. Use that of the model's processor"
            raise CheckpointError(f"{self.folder}: {told}") from error

    def _tried(self, messages: Sequence[Message], *, asks: bool = True) -> str:
        try:
            return self._rendered(messages, asks=asks)
        except CheckpointError:
            return ""


def _shows_probe(text: str) -> bool:
    """Whether the template wrote the text itself, and not its part as Python writes it."""
    return _PROBE in text and "'text'" not in text


def _processor(folder: Path) -> Any:
    from transformers import AutoProcessor

    try:
        found = AutoProcessor.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # mismatched files or a missing package raise errors of many kinds
        raise CheckpointError(f"{folder}: the processor cannot be loaded ({type(error).__name__}: {error})") from error
    if not hasattr(found, "tokenizer"):
        raise CheckpointError(f"{folder}: expected a processor of pictures and text, found {type(found).__name__}")
    return found
