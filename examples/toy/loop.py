"""One resumable loop of gradient steps, shared by every stage of a build."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from examples.toy.checkpoint import Checkpoints
from examples.toy.recipe import Recipe, Stage

Figures = dict[str, float]
"""Held-out figures by name, such as ``{"colour": 0.97}``."""


@dataclass(kw_only=True)
class Loop:
    """Gradient steps of one stage. Everything that changes while it runs is in its checkpoints.

    ``draw`` makes a batch from ``random`` and returns its loss; ``look`` measures on held-out data; ``enough`` says
    whether the figures are such that the stage ends early.
    """

    name: str
    recipe: Recipe
    stage: Stage
    modules: dict[str, torch.nn.Module]
    checkpoints: Checkpoints
    console: Console
    draw: Callable[[np.random.Generator, Figures], torch.Tensor]
    look: Callable[[], Figures]
    enough: Callable[[Figures], bool]
    factors: dict[str, float] = field(default_factory=dict)
    """Of modules that learn at another rate: by what the stage's is multiplied."""
    stop_after: int | None = None
    """Leave, as if killed after a checkpoint, once so many steps are done in all; for tests."""

    def run(self) -> bool:
        """Go on from the newest checkpoint to the end of the stage. False when ``stop_after`` cut it short."""
        order = list(self.recipe_seed())
        random = np.random.default_rng(order)
        learned = [p for module in self.modules.values() for p in module.parameters() if p.requires_grad]
        optimiser = torch.optim.AdamW(self._groups(), lr=self.stage.rate, betas=(0.9, 0.98))
        step, figures, done = 0, Figures(), False
        state = self.checkpoints.read(self.name)
        if state is not None:
            step, figures, done = int(state["step"]), dict(state["figures"]), bool(state["done"])
            random.bit_generator.state = state["random"]
            optimiser.load_state_dict(state["optimiser"])
            for name, module in self.modules.items():
                module.load_state_dict(state["modules"][name])
            self.console.print(f"{self.recipe.name}/{self.name}: going on from step {step}")
        losses: list[float] = []
        with self._progress() as progress:
            task = progress.add_task(f"{self.recipe.name}/{self.name}", total=self.stage.steps, completed=step)
            while step < self.stage.steps and not done:
                for group in optimiser.param_groups:
                    group["lr"] = rate_at(self.stage, step) * group.get("factor", 1.0)
                loss = self.draw(random, figures)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(learned, self.recipe.clip)
                optimiser.step()
                optimiser.zero_grad(set_to_none=True)
                step += 1
                losses.append(loss.item())
                progress.advance(task)
                if step % self.stage.report_every == 0 or step == self.stage.steps:
                    figures = self.look()
                    done = self.enough(figures)
                    said = "  ".join(f"{name} {value:.3f}" for name, value in figures.items())
                    self.console.print(
                        f"{self.recipe.name}/{self.name} {step:5d}/{self.stage.steps}  "
                        f"loss {np.mean(losses):.4f}  {said}  ({progress.tasks[task].elapsed or 0:.0f} s)",
                        highlight=False,
                        soft_wrap=True,
                    )
                    losses.clear()
                if step % self.recipe.checkpoint_every == 0 or step == self.stage.steps or done:
                    self._write(step, figures, done, random, optimiser)
                    if step == self.stop_after:
                        return False
        return True

    def recipe_seed(self) -> Sequence[int]:
        """What the order of examples depends on."""
        return [self.recipe.seed, *self.name.encode()]

    def _groups(self) -> list[dict[str, Any]]:
        """Matrices, which decay, and vectors, which do not; then the same of each module with a rate of its own."""
        plain = [module for name, module in self.modules.items() if name not in self.factors]
        groups = self._halves(plain)
        for name, factor in self.factors.items():
            groups += [half | {"factor": factor} for half in self._halves([self.modules[name]])]
        return groups

    def _halves(self, modules: list[torch.nn.Module]) -> list[dict[str, Any]]:
        learned = [p for module in modules for p in module.parameters() if p.requires_grad]
        decayed = [p for p in learned if p.ndim > 1]
        others = [p for p in learned if p.ndim <= 1]
        return [
            {"params": decayed, "weight_decay": self.recipe.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]

    def _write(
        self, step: int, figures: Figures, done: bool, random: np.random.Generator, optimiser: torch.optim.Optimizer
    ) -> None:
        self.checkpoints.write(
            self.name,
            {
                "step": step,
                "figures": figures,
                "done": done,
                "random": random.bit_generator.state,
                "optimiser": optimiser.state_dict(),
                "modules": {name: module.state_dict() for name, module in self.modules.items()},
            },
        )

    def _progress(self) -> Progress:
        return Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self.console,
        )


def rate_at(stage: Stage, step: int) -> float:
    """The learning rate of the step after ``step`` steps: linear warm-up, then a cosine down to ``floor``."""
    if step < stage.warmup:
        return stage.rate * (step + 1) / stage.warmup
    through = (step - stage.warmup) / max(1, stage.steps - stage.warmup)
    return stage.rate * (stage.floor + (1 - stage.floor) * 0.5 * (1 + math.cos(math.pi * through)))
