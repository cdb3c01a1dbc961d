"""The three stages of one model: its vision tower with linear heads, judging alone, then all but the tower."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from rich.console import Console
from torch.nn import functional
from transformers import PreTrainedTokenizerFast

from examples import easy_vqa
from examples.toy import models
from examples.toy.checkpoint import Checkpoints
from examples.toy.evaluate import judge_agreement, quick_accuracy
from examples.toy.examples import QuestionPrompts, draw_triple, evaluation_pair, make_batch, parsing_pair
from examples.toy.forward import Features, Model, picture_loss, see, see_all, text_loss
from examples.toy.loop import Figures, Loop
from examples.toy.pictures import UNKNOWN, Pictures, vary
from examples.toy.recipe import Recipe, Stage

JUDGED = 100
"""Held-out triples that the judge is looked at with along the way; 0: it is not."""
PARSING = 0.1
"""Share of judge examples that are second calls."""
RARELY, OFTEN = 0.25, 2.0
"""How much a kind well above its target is drawn, and one well below, against 1 for one at ``target - band``."""


@dataclass(frozen=True)
class Data:
    """Training pictures, and the part of them that is kept apart."""

    drawn: Pictures
    held_out: Pictures

    @staticmethod
    def split(pictures: Pictures, held_out: int) -> Data:
        """The last ``held_out`` pictures are kept apart."""
        return Data(pictures.part(slice(None, -held_out)), pictures.part(slice(-held_out, None)))


class Heads(torch.nn.Module):
    """A linear head for each kind over the mean of the image tokens, on the last and on every deepstack level."""

    def __init__(self, hidden: int, levels: int) -> None:
        super().__init__()
        sizes = [len(labels) for labels in easy_vqa.LABELS.values()]
        self.heads = torch.nn.ModuleList(
            torch.nn.ModuleList(torch.nn.Linear(hidden, size) for size in sizes) for _ in range(levels + 1)
        )

    def forward(self, features: Features) -> list[list[torch.Tensor]]:
        """Logits by level (the last layer first), then by kind, each (n, labels)."""
        levels = [features.merged, *features.deepstack.unbind(1)]
        means = [level.mean(dim=1) for level in levels]
        return [[head(mean) for head in heads.children()] for heads, mean in zip(self.heads, means, strict=True)]


class Trainer:
    """Runs the stages of ``recipe`` over ``data``; each goes on from its newest checkpoint.

    Another pair overrides what the model starts as, what of it learns, and what is kept of pictures.
    """

    judged = JUDGED

    def __init__(
        self,
        recipe: Recipe,
        data: Data,
        tokenizer: PreTrainedTokenizerFast,
        checkpoints: Checkpoints,
        console: Console,
        stop_after: int | None = None,
    ) -> None:
        self.recipe, self.data, self.tokenizer = recipe, data, tokenizer
        self.checkpoints, self.console, self.stop_after = checkpoints, console, stop_after
        self.questions = QuestionPrompts(tokenizer)
        self.model: Model = self.make_model()
        held_out = np.random.default_rng([recipe.seed, 1])
        self.triples = [draw_triple(self.questions, held_out) for _ in range(self.judged)]
        self.rows = [
            (row, kind, self.questions.draw(kind, labels, held_out), easy_vqa.LABELS[kind][labels[at]])
            for row, labels in enumerate(data.held_out.labels)
            for at, kind in enumerate(easy_vqa.KINDS)
            if labels[at] != UNKNOWN
        ]

    def make_model(self) -> Model:
        """The model before its first stage."""
        return models.make_model(self.recipe.shape, self.tokenizer, self.recipe.seed)

    def keep(self, pixels: torch.Tensor) -> Features:
        """What is kept of pictures (n, 3, 64, 64) once the tower rests."""
        return see_all(self.model, pixels)

    def given(self, kept: Features) -> Features:
        """What the language part is given of what was kept."""
        return kept

    def learning(self) -> dict[str, torch.nn.Module]:
        """What learns after the tower; the rest needs no gradients from here on."""
        self.model.model.visual.requires_grad_(False)
        return {"language": self.model.model.language_model}

    @property
    def factors(self) -> dict[str, float]:
        """Modules that learn at another rate than the stage's, and by what that is multiplied."""
        return {}

    def enough(self, figures: Figures) -> bool:
        """Whether the language stage ends here."""
        stage = self.recipe.language
        target = stage.target
        return target is not None and all(abs(figures[kind] - target) <= stage.band for kind in easy_vqa.KINDS)

    def run(self) -> Model | None:
        """The trained model in float32, or None when ``stop_after`` cut a stage short."""
        for stage in (self.tower, self.judge, self.language):
            if not stage():
                return None
        self.model.eval()
        return self.model

    def tower(self) -> bool:
        """Vision tower and throw-away heads, on shifted and mirrored pictures."""
        model, data, size = self.model, self.data.drawn, self.recipe.stages["tower"].batch
        torch.manual_seed(self.recipe.seed)
        heads = Heads(self.recipe.shape.hidden, len(self.recipe.shape.deepstack))

        def draw(random: np.random.Generator, _: Figures) -> torch.Tensor:
            rows = random.integers(0, len(data), size)
            labels = data.labels[rows].copy()
            copies = [vary(data.pixels[row], data.boxes[row], random) for row in rows]
            labels[:, 2] = [place for _, place in copies]
            targets = torch.from_numpy(labels)
            logits = heads(see(model, torch.stack([picture for picture, _ in copies])))
            losses = [
                functional.cross_entropy(of_kind, targets[:, at], ignore_index=UNKNOWN)
                for level in logits
                for at, of_kind in enumerate(level)
            ]
            return torch.stack(losses).mean()

        def look() -> Figures:
            seen = see_all(model, self.data.held_out.pixels)
            labels = torch.from_numpy(self.data.held_out.labels)
            figures = Figures()
            with torch.no_grad():
                for prefix, level in zip(("", *(f"deep{n}-" for n in range(9))), heads(seen), strict=False):
                    for at, kind in enumerate(easy_vqa.KINDS):
                        known = labels[:, at] != UNKNOWN
                        right = level[at].argmax(-1)[known] == labels[known, at]
                        figures[prefix + kind] = right.float().mean().item()
            return figures

        return self._loop("tower", {"visual": model.model.visual, "heads": heads}, draw, look)

    def judge(self) -> bool:
        """The language part on judge prompts, and on which labels questions may have, whatever the picture."""
        stage = self.recipe.stages["judge"]
        if stage.steps == 0:
            return True

        def draw(random: np.random.Generator, _: Figures) -> torch.Tensor:
            loss = self._judge_loss(random, stage.judge_batch)
            return loss + self._question_loss(random, stage, {}, blind=True) if stage.batch else loss

        return self._loop("judge", self.learning(), draw, self._judge_figures)

    def language(self) -> bool:
        """The language part on questions, with judge prompts to the end."""
        stage = self.recipe.stages["language"]
        if stage.steps == 0:
            return True
        modules = self.learning()
        held = self.keep(self.data.held_out.pixels)
        held = held.rows(torch.tensor([row for row, *_ in self.rows]))

        def draw(random: np.random.Generator, figures: Figures) -> torch.Tensor:
            loss = self._question_loss(random, stage, figures)
            return loss + self._judge_loss(random, stage.judge_batch) if stage.judge_batch else loss

        def look() -> Figures:
            return self.accuracy(held)

        finished = self._loop("language", modules, draw, look, self.enough)
        if self.triples:
            self.console.print(f"{self.recipe.name}: judge agreement {self._judge_figures()}", highlight=False)
        return finished

    def accuracy(self, held: Features) -> Figures:
        """By kind, on the held-out questions, from what was kept of each one's picture."""
        return quick_accuracy(self.model, self.questions, [row[1:] for row in self.rows], self.given(held))

    def _question_loss(
        self, random: np.random.Generator, stage: Stage, figures: Figures, *, blind: bool = False
    ) -> torch.Tensor:
        """Loss of ``stage.batch`` questions; with ``blind`` their labels are any of the kind."""
        copies, labels = self._copies
        known = [np.flatnonzero(labels[:, at] != UNKNOWN) for at in range(len(easy_vqa.KINDS))]
        shares = kind_shares(stage, figures)
        pairs, rows = [], []
        for _ in range(stage.batch):
            at = int(random.choice(len(shares), p=shares))
            row = int(random.choice(known[at]))
            kind = easy_vqa.KINDS[at]
            label = int(random.integers(0, len(easy_vqa.LABELS[kind]))) if blind else labels[row, at]
            question = self.questions.draw(kind, labels[row], random)
            pairs.append((self.questions.prompt(question), easy_vqa.LABELS[kind][label]))
            rows.append(row)
        features = self.given(copies.rows(torch.tensor(rows)))
        return picture_loss(self.model, make_batch(self.tokenizer, pairs), features)

    def _judge_loss(self, random: np.random.Generator, count: int) -> torch.Tensor:
        """Mean loss over first and second judge calls, weighted by how many there are of each."""
        second = int(random.binomial(count, PARSING))
        total = torch.zeros(())
        for make, size in ((evaluation_pair, count - second), (parsing_pair, second)):
            if size:
                pairs = [make(self.tokenizer, draw_triple(self.questions, random)) for _ in range(size)]
                total = total + text_loss(self.model, make_batch(self.tokenizer, pairs)) * (size / count)
        return total

    def _judge_figures(self) -> Figures:
        return judge_agreement(self.model, self.tokenizer, self.triples)

    @cached_property
    def _copies(self) -> tuple[Features, np.ndarray]:
        """Features of every training picture and of shifted copies, in bfloat16, with their (n, 3) labels."""
        data, random = self.data.drawn, np.random.default_rng([self.recipe.seed, 2])
        parts, labels = [self.keep(data.pixels)], [data.labels]
        for _ in range(self.recipe.copies):
            moved = [vary(data.pixels[row], data.boxes[row], random) for row in range(len(data))]
            parts.append(self.keep(torch.stack([picture for picture, _ in moved])))
            labels.append(np.column_stack([data.labels[:, :2], [place for _, place in moved]]))
        merged = torch.cat([part.merged.bfloat16() for part in parts])
        return Features(merged, torch.cat([part.deepstack.bfloat16() for part in parts])), np.concatenate(labels)

    def _loop(
        self,
        name: str,
        modules: dict[str, torch.nn.Module],
        draw: Callable[[np.random.Generator, Figures], torch.Tensor],
        look: Callable[[], Figures],
        enough: Callable[[Figures], bool] = lambda _: False,
    ) -> bool:
        return Loop(
            name=name,
            recipe=self.recipe,
            stage=self.recipe.stages[name],
            modules=modules,
            checkpoints=self.checkpoints,
            console=self.console,
            draw=draw,
            look=look,
            enough=enough,
            factors={name: factor for name, factor in self.factors.items() if name in modules},
            stop_after=self.stop_after,
        ).run()


def kind_shares(stage: Stage, figures: Figures) -> np.ndarray:
    """How often each kind is drawn, (3,) summing to 1: the more, the further it is below ``target + band``."""
    accuracy = np.array([figures.get(kind, 0.0) for kind in easy_vqa.KINDS])
    if stage.target is None:
        return np.full(len(accuracy), 1 / len(accuracy))
    wanted = np.clip((stage.target + stage.band - accuracy) / (2 * stage.band), RARELY, OFTEN)
    return np.asarray(wanted / wanted.sum())
