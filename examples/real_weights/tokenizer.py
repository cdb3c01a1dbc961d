"""SmolLM2's own tokenizer, four of whose tokens for notebooks stand for pictures instead: no id is added."""

from __future__ import annotations

import json
from typing import Any

import tokenizers
from transformers import PreTrainedTokenizerFast

from examples.real_weights import pretrained
from examples.toy import tokenizer as words

RENAMED = {
    "<jupyter_start>": words.VISION_START,
    "<jupyter_text>": words.VISION_END,
    "<jupyter_code>": words.IMAGE,
    "<jupyter_output>": words.VIDEO,
}
MAX_LENGTH = 8192


def renamed(state: dict[str, Any]) -> dict[str, Any]:
    """A tokenizer's state, as its JSON has it, with the tokens of ``RENAMED`` called otherwise."""
    vocabulary = {RENAMED.get(token, token): number for token, number in state["model"]["vocab"].items()}
    added = [entry | {"content": RENAMED.get(entry["content"], entry["content"])} for entry in state["added_tokens"]]
    return state | {"model": state["model"] | {"vocab": vocabulary}, "added_tokens": added}


def make_tokenizer() -> PreTrainedTokenizerFast:
    """It, with the toy's chat template: SmolLM2's turns, and pictures. Raises DataError when the package is missing."""
    own = pretrained.load_tokenizer()
    engine = tokenizers.Tokenizer.from_str(json.dumps(renamed(json.loads(own.backend_tokenizer.to_str()))))
    return PreTrainedTokenizerFast(
        tokenizer_object=engine,
        eos_token=words.END,
        pad_token=words.PAD,
        additional_special_tokens=[token for token in words.SPECIAL if token not in (words.END, words.PAD)],
        model_max_length=MAX_LENGTH,
        clean_up_tokenization_spaces=False,
        chat_template=words.CHAT_TEMPLATE,
    )
