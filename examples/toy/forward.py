"""Forward passes for training that share what is the same in every row. They give the stock model's numbers.

Pictures are seen once by the tower and kept as features, since only the language part learns from questions; the
prefix that all judge prompts have in common is run once for the whole batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch.nn import functional
from transformers import DynamicCache, Qwen2_5_VLForConditionalGeneration, Qwen3VLForConditionalGeneration

from examples.toy.examples import IMAGE_TOKENS, Batch
from examples.toy.pictures import grid, to_patches

Model: TypeAlias = Qwen3VLForConditionalGeneration | Qwen2_5_VLForConditionalGeneration


@dataclass(frozen=True)
class Features:
    """What the vision tower makes of n pictures."""

    merged: torch.Tensor
    """(n, 16, hidden)"""
    deepstack: torch.Tensor
    """(n, levels, 16, hidden); a Qwen2.5-VL has no levels."""

    def rows(self, index: torch.Tensor) -> Features:
        """Some of the pictures."""
        return Features(self.merged[index].float(), self.deepstack[index].float())


def see(model: Model, pixels: torch.Tensor) -> Features:
    """Run the tower over uint8 pictures (n, 3, 64, 64)."""
    count = len(pixels)
    seen = model.model.visual(to_patches(pixels), grid_thw=grid(count))
    return features_of(seen.pooler_output.reshape(count, IMAGE_TOKENS, -1), getattr(seen, "deepstack_features", ()))


def features_of(merged: torch.Tensor, deepstack: Sequence[torch.Tensor] = ()) -> Features:
    """Image tokens (n, 16, hidden) with those of each deepstack level, (n * 16, hidden)."""
    levels = [level.reshape(merged.shape) for level in deepstack]
    return Features(merged, torch.stack(levels, dim=1) if levels else merged[:, None][:, :0])


@torch.no_grad()
def see_all(model: Model, pixels: torch.Tensor, chunk: int = 100) -> Features:
    """``see`` without gradients, in chunks; for as many pictures as there are."""
    parts = [see(model, pixels[at : at + chunk]) for at in range(0, len(pixels), chunk)]
    return Features(torch.cat([part.merged for part in parts]), torch.cat([part.deepstack for part in parts]))


def picture_hidden(model: Model, ids: torch.Tensor, features: Features) -> torch.Tensor:
    """Last hidden states (n, length, hidden) of rows that hold one 64 x 64 picture each, all at the same positions."""
    mask = ids == model.config.image_token_id
    embedded = model.get_input_embeddings()(ids)
    embedded = embedded.masked_scatter(mask[..., None], features.merged.reshape(-1, features.merged.shape[-1]))
    first = ids[:1]
    positions, _ = model.model.get_rope_index(first, mask[:1].int(), image_grid_thw=grid(1))
    levels = [level.reshape(-1, level.shape[-1]) for level in features.deepstack.unbind(1)]
    deep = {"visual_pos_masks": mask, "deepstack_visual_embeds": levels} if levels else {}
    seen: torch.Tensor = model.model.language_model(
        inputs_embeds=embedded,
        position_ids=positions.expand(-1, len(ids), -1),
        use_cache=False,
        **deep,
    ).last_hidden_state
    return seen


def text_hidden(model: Model, ids: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Hidden states (n, length - shared, hidden) after the columns that all rows share, and how many those are."""
    same = (ids == ids[:1]).all(dim=0)
    shared = int(same.int().cumprod(0).sum()) - 1
    if len(ids) < 2 or shared < 1:
        return model.model.language_model(input_ids=ids, use_cache=False).last_hidden_state, 0
    cache = DynamicCache()
    model.model.language_model(input_ids=ids[:1, :shared], past_key_values=cache, use_cache=True)
    cache.batch_repeat_interleave(len(ids))
    seen = model.model.language_model(input_ids=ids[:, shared:], past_key_values=cache, use_cache=True)
    return seen.last_hidden_state, shared


def loss_of(model: Model, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy over the answer tokens."""
    kept = targets >= 0
    return functional.cross_entropy(model.lm_head(hidden[kept]).float(), targets[kept])


def picture_loss(model: Model, batch: Batch, features: Features) -> torch.Tensor:
    """Loss of a batch of questions about pictures."""
    return loss_of(model, picture_hidden(model, batch.ids, features), batch.targets)


def text_loss(model: Model, batch: Batch) -> torch.Tensor:
    """Loss of a batch of judge prompts."""
    hidden, shared = text_hidden(model, batch.ids)
    return loss_of(model, hidden, batch.targets[:, shared:])
