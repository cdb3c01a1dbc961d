"""The toy's stages with pretrained language weights: they and the projector learn, embeddings and tower rest."""

from __future__ import annotations

import torch

from examples import easy_vqa
from examples.real_weights import models, pretrained
from examples.real_weights.recipe import RealRecipe
from examples.toy.evaluate import quick_accuracy
from examples.toy.examples import IMAGE_TOKENS
from examples.toy.forward import Features, Model, features_of
from examples.toy.loop import Figures
from examples.toy.pictures import grid, to_patches
from examples.toy.train import Trainer

CHUNK = 50
"""Held-out questions that are looked at together."""


class RealTrainer(Trainer):
    """Keeps what the tower's last layer makes of a picture, so that the projector, which follows it, can learn."""

    recipe: RealRecipe
    judged = 0

    @property
    def factors(self) -> dict[str, float]:
        """The projector learns faster."""
        return {"projector": self.recipe.projector_factor}

    def make_model(self) -> Model:
        """Pretrained language weights and a fresh tower. Raises DataError when the packages are missing."""
        return models.make_model(self.recipe.shape, self.tokenizer, self.recipe.seed, pretrained.load_model())

    @torch.no_grad()
    def keep(self, pixels: torch.Tensor, chunk: int = 100) -> Features:
        """(n, 16, 4 x the tower's hidden size): the four patches of each image token before they are merged."""
        parts = [
            self.model.model.visual(to_patches(part), grid_thw=grid(len(part))).last_hidden_state
            for part in pixels.split(chunk)
        ]
        return features_of(torch.cat(parts).reshape(len(pixels), IMAGE_TOKENS, -1))

    def language(self) -> bool:
        """The toy's, from image tokens as large as the embeddings: the throw-away heads left them at any size."""
        with torch.no_grad():
            seen = self.given(self.keep(self.data.held_out.pixels)).merged
            words = self.model.model.language_model.embed_tokens.weight
            scale = words.square().mean().sqrt() / seen.square().mean().sqrt()
            last = self.model.model.visual.merger.mlp[2]
            last.weight.mul_(scale)
            last.bias.mul_(scale)
        return super().language()

    def given(self, kept: Features) -> Features:
        """The projector's image tokens."""
        patches = kept.merged.reshape(-1, self.recipe.shape.vision_hidden)
        return features_of(self.model.model.visual.merger(patches).reshape(len(kept.merged), IMAGE_TOKENS, -1))

    def learning(self) -> dict[str, torch.nn.Module]:
        """Language layers and projector. The embeddings, which are the head too, stay what pretraining made them."""
        visual, language = self.model.model.visual, self.model.model.language_model
        visual.requires_grad_(False)
        visual.merger.requires_grad_(True)
        language.embed_tokens.requires_grad_(False)
        return {"language": language, "projector": visual.merger}

    def enough(self, figures: Figures) -> bool:
        """Once the worst kind has come into the band: a kind far above it does not come back by itself."""
        stage = self.recipe.language
        return stage.target is not None and all(figures[kind] >= stage.target - stage.band for kind in easy_vqa.KINDS)

    @torch.no_grad()
    def accuracy(self, held: Features) -> Figures:
        """By kind, a chunk of questions after the other."""
        right: dict[str, float] = dict.fromkeys(easy_vqa.KINDS, 0.0)
        for at in range(0, len(self.rows), CHUNK):
            rows = [row[1:] for row in self.rows[at : at + CHUNK]]
            seen = self.given(held.rows(torch.arange(at, at + len(rows))))
            for kind, share in quick_accuracy(self.model, self.questions, rows, seen).items():
                right[kind] += share * sum(row[0] == kind for row in rows)
        return {kind: count / max(1, sum(row[1] == kind for row in self.rows)) for kind, count in right.items()}
