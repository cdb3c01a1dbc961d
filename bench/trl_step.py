"""TRL's GRPO step on prepared tensors: the loss of a real ``trl.GRPOTrainer``, without its sampling and rewards."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerFast, Qwen3VLForConditionalGeneration
from trl import GRPOConfig, GRPOTrainer

BETA = 0.1
"""Weight of k3 against the reference policy."""


class TrlStep:
    """The loss TRL takes a gradient of, for one group at a time.

    The trainer is TRL's own. Two things are done to it from outside:

    * ``beta`` is set after construction. Built with ``beta > 0`` it would load a reference model by the name in the
      model's configuration; ``prepared`` brings the reference's log-probabilities instead.
    * ``current_gradient_accumulation_steps``, which only ``train()`` sets, is 1.

    One setting is not TRL's default besides ``beta`` and ``loss_type``: with ``use_bias_correction_kl`` k3 would be
    multiplied by the ratio, which leaves the loss as it is but changes its gradient. Gradient checkpointing and bf16
    autocast, on by default, are off.

    Its tokenizer holds two words and is never asked for one: ``_compute_loss`` reads ids.
    """

    def __init__(self, model: Qwen3VLForConditionalGeneration) -> None:
        """Build the trainer round ``model``, whose place, precision and train/eval mode stay as they are.

        TRL replaces ``model.forward`` by one that can also score labels in tiles (plain calls work as before), and
        seeds the global random generators.
        """
        config, generation = model.config.get_text_config(), model.generation_config
        pads = config.pad_token_id, generation.pad_token_id
        with tempfile.TemporaryDirectory() as folder:
            settings = GRPOConfig(
                output_dir=folder,
                beta=0.0,
                use_bias_correction_kl=False,
                loss_type="grpo",
                importance_sampling_level="token",
                num_iterations=1,
                num_generations=8,
                per_device_train_batch_size=8,
                gradient_accumulation_steps=1,
                temperature=1.0,
                top_entropy_quantile=1.0,
                bf16=False,
                gradient_checkpointing=False,
                use_vllm=False,
                use_cpu=model.device.type == "cpu",
                report_to="none",
            )
            self.trainer = GRPOTrainer(
                model=model,
                reward_funcs=_no_reward,
                args=settings,
                train_dataset=Dataset.from_dict({"prompt": ["-"]}),
                processing_class=_two_words(),
            )
        config.pad_token_id, generation.pad_token_id = pads
        self.trainer.beta = BETA
        self.trainer.current_gradient_accumulation_steps = 1
        self.model = model

    def loss(self, inputs: dict[str, Any]) -> Tensor:
        """−mean_j mean_t of ratio·A_j − BETA·k3_t with ratio 1 (only its gradient counts): a scalar with a gradient.

        inputs: what ``prepared`` returns, on the model's device.
        """
        loss: Tensor = self.trainer._compute_loss(self.model, inputs)
        return loss


def prepared(
    prompt_ids: Tensor,
    answers: Sequence[Tensor],
    pixel_values: Tensor,
    image_grid_thw: Tensor,
    mm_token_type_ids: Tensor,
    advantages: Tensor,
    ref_logps: Tensor,
    *,
    pad: int = 0,
) -> dict[str, Any]:
    """What TRL hands to ``_compute_loss`` for G answers to one prompt.

    prompt_ids, mm_token_type_ids: [P]; answers: G of [up to T] long, T the longest; pixel_values: [patches, values];
    image_grid_thw: [pictures, 3]; advantages: [G]; ref_logps: [G, T], anything behind an answer's end; pad: the id
    that fills up shorter answers, not an image's.

    Returns prompt_ids and prompt_mask [G, P] (TRL pads on the left; here all rows are equally long), completion_ids and
    completion_mask [G, T] padded on the right, mm_token_type_ids [G, P + T], pixel_values [G · patches, values] and
    image_grid_thw [G · pictures, 3] (TRL repeats the pictures for every answer), num_images (G numbers), advantages
    [G], ref_per_token_logps [G, T] and num_items_in_batch (scalar; this loss type does not read it).
    ``old_per_token_logps`` is absent: with one update per batch TRL takes the new ones, detached.
    """
    rows = len(answers)
    completion_ids = pad_sequence(list(answers), batch_first=True, padding_value=pad)
    completion_mask = pad_sequence([torch.ones_like(answer) for answer in answers], batch_first=True)
    prompts = prompt_ids.repeat(rows, 1)
    kinds = mm_token_type_ids.repeat(rows, 1)
    return {
        "prompt_ids": prompts,
        "prompt_mask": torch.ones_like(prompts),
        "completion_ids": completion_ids,
        "completion_mask": completion_mask,
        "mm_token_type_ids": torch.cat([kinds, kinds.new_zeros(completion_ids.shape)], dim=1),
        "pixel_values": pixel_values.repeat(rows, 1),
        "image_grid_thw": image_grid_thw.repeat(rows, 1),
        "num_images": [len(image_grid_thw)] * rows,
        "advantages": advantages,
        "ref_per_token_logps": ref_logps.masked_fill(completion_mask == 0, 0.0),
        "num_items_in_batch": completion_mask.sum(),
    }


def _no_reward(completions: list[Any], **_: Any) -> list[float]:
    """GRPOTrainer insists on a reward; the advantages are given, so it is never called."""
    raise AssertionError(f"expected no call, got one for {len(completions)} answers")


def _two_words() -> PreTrainedTokenizerFast:
    words = {"<pad>": 0, "<end>": 1}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="<pad>")), pad_token="<pad>", eos_token="<end>"
    )
