"""The tokenizer both models share: byte-level BPE over the judge prompts, the questions and the labels."""

from __future__ import annotations

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from examples import easy_vqa
from masters_ray.method import prompts

END = "<|im_end|>"
PAD = "<|endoftext|>"
IMAGE = "<|image_pad|>"
VIDEO = "<|video_pad|>"
VISION_START = "<|vision_start|>"
VISION_END = "<|vision_end|>"
SPECIAL = (PAD, "<|im_start|>", END, VISION_START, VISION_END, IMAGE, VIDEO)
VOCABULARY = 640
"""Tokens, and rows of the embedding: the corpus fills 631, reserved tokens the rest, so that every id has a text."""
MAX_LENGTH = 4096

CHAT_TEMPLATE = """\
{%- for message in messages -%}
<|im_start|>{{ message['role'] }}
{% if message['content'] is string %}{{ message['content'] }}{% else %}
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' or 'image' in part or 'image_url' in part -%}
<|vision_start|><|image_pad|><|vision_end|>
{%- elif part['type'] == 'video' or 'video' in part -%}
<|vision_start|><|video_pad|><|vision_end|>
{%- elif 'text' in part -%}{{ part['text'] }}{%- endif -%}
{%- endfor -%}
{%- endif -%}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}<|im_start|>assistant
{% endif -%}
"""


def corpus() -> list[str]:
    """The texts the merges are learned from, in a fixed order; training questions only."""
    questions = sorted({question for question, _, _ in easy_vqa.read_questions("train")})
    questions += list(easy_vqa.PLACE_QUESTIONS)
    texts = [f"user\n{question}" for question in questions for _ in range(4)]
    for labels in easy_vqa.LABELS.values():
        for label in labels:
            said = f"Ground truth: {label}. Generated: {label}. <answer>1</answer>"
            texts += [label, f" {label}", said, f"{label}\n", f"assistant\n{label}"] * 20
    for turns in (prompts.EVALUATION.messages("q", "l", "a"), prompts.PARSING.messages("s")):
        texts += [f"{turn['role']}\n{turn['content']}\n" for turn in turns] * 200
    texts += ["Ground truth: nothing. Generated: nothing. <answer>0</answer>", "0", "1"] * 50
    return texts


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Train it (a second of work, the same result every time). Raises DataError when easy-vqa is missing."""
    engine = tokenizers.Tokenizer(models.BPE())
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    engine.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    engine.train_from_iterator(corpus(), trainer)
    unused = range(VOCABULARY - engine.get_vocab_size())
    engine.add_special_tokens([f"<|reserved_{number}|>" for number in unused])
    return PreTrainedTokenizerFast(
        tokenizer_object=engine,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[token for token in SPECIAL if token not in (END, PAD)],
        model_max_length=MAX_LENGTH,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )


def token_id(tokenizer: PreTrainedTokenizerFast, token: str) -> int:
    """The id of one token."""
    found = tokenizer.convert_tokens_to_ids(token)
    assert isinstance(found, int)
    return found
