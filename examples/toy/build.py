"""Build the toy pair: ``python -m examples.toy.build``. The same command goes on where a killed one stopped.

Other pairs over the same pictures are built by the same steps (``build_pair``).

easy-vqa ─► tower ─► judge ─► language ─► bfloat16 files ─► figures on the test pictures ─► manifest.json
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import torch
from rich.console import Console
from transformers import PreTrainedTokenizerFast, ProcessorMixin

from examples import easy_vqa
from examples.toy import PAIR, manifest, models
from examples.toy.checkpoint import Checkpoints
from examples.toy.pictures import read_pictures
from examples.toy.recipe import RECIPES, Name, Recipe, Shape
from examples.toy.tokenizer import make_tokenizer
from examples.toy.train import Data, Trainer
from masters_ray.errors import MastersError

Which = Literal["teacher", "student", "all"]


def _nothing(recipe: Recipe, folder: Path) -> dict[str, Any]:
    return {}


@dataclass(frozen=True, kw_only=True)
class Pair:
    """All that makes one pair differ from another."""

    about: str
    """What the manifest says of it."""
    recipes: Mapping[Name, Recipe]
    tokenizer: Callable[[], PreTrainedTokenizerFast]
    processor: Callable[[Shape, PreTrainedTokenizerFast], ProcessorMixin]
    trainer: type[Trainer]
    packages: tuple[str, ...] = manifest.PACKAGES
    """What the result depends on; the manifest names their versions."""
    asked: int | None = None
    """Test questions of each kind that a finished model is asked; None: all."""
    judged: int = manifest.JUDGED
    """Answers that a finished model judges; 0 where the pair does not learn to."""
    told: Callable[[Recipe, Path], dict[str, Any]] = _nothing
    """What else the manifest says of a finished model."""


TOY = Pair(
    about="tiny Qwen3-VL pair over easy-vqa; accuracy is greedy, on the test pictures, by kind",
    recipes=RECIPES,
    tokenizer=make_tokenizer,
    processor=models.make_processor,
    trainer=Trainer,
)


def build(
    out: Path,
    only: Which = "all",
    *,
    work: Path,
    recipes: dict[Name, Recipe] | None = None,
    seed: int | None = None,
    console: Console | None = None,
    stop_after: int | None = None,
    test_limit: int | None = None,
) -> bool:
    """The toy pair by ``build_pair``; other ``recipes`` and a ``test_limit`` of the figures are for tests."""
    pair = TOY
    if recipes is not None:
        pair = replace(pair, recipes=recipes)
    if test_limit is not None:
        pair = replace(pair, asked=test_limit, judged=test_limit)
    return build_pair(pair, out, only, work=work, seed=seed, console=console, stop_after=stop_after)


def build_pair(
    pair: Pair,
    out: Path,
    only: Which = "all",
    *,
    work: Path,
    seed: int | None = None,
    console: Console | None = None,
    stop_after: int | None = None,
) -> bool:
    """Train ``only`` (or both), write their folders below ``out`` and bring ``manifest.json`` up to date.

    ``work`` keeps the checkpoints. ``stop_after`` leaves after so many steps of a stage, for tests. Returns False when
    it cut the build short. One thread is used: two models are built side by side by two processes. Raises DataError
    when easy-vqa is missing and CheckpointError when ``work`` holds states of another recipe.
    """
    torch.set_num_threads(1)
    console = console or Console()
    names = list(pair.recipes) if only == "all" else [only]
    tokenizer = pair.tokenizer()
    pictures = read_pictures("train")
    for name in names:
        recipe = pair.recipes[name] if seed is None else pair.recipes[name].with_seed(seed)
        data = Data.split(pictures, recipe.held_out)
        checkpoints = Checkpoints(work / name, recipe)
        began = time.monotonic()
        model = pair.trainer(recipe, data, tokenizer, checkpoints, console, stop_after).run()
        if model is None:
            return False
        models.save(model, pair.processor(recipe.shape, tokenizer), out / name)
        seconds = time.monotonic() - began
        entry = manifest.describe(out / name, pair.asked, pair.judged) | pair.told(recipe, out / name)
        entry |= {"recipe": asdict(recipe), "seconds_of_the_last_run": round(seconds, 1)}
        manifest.update(out, name, entry, pair.about, pair.packages)
        as_judge = f", as a judge {entry['judge']}" if "judge" in entry else ""
        console.print(f"{name}: {entry['accuracy']}{as_judge}", highlight=False)
    return True


def main(pair: Pair, about: str | None, *, out: Path, work: Path) -> int:
    """Run ``build_pair`` as the command's options say; 0 when the pair is complete, 2 for an error that says how to
    mend it. out, work: defaults of the options."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=out, help="folder of the pair (default: %(default)s)")
    parser.add_argument("--work", type=Path, default=work, help="folder of the checkpoints (default: %(default)s)")
    parser.add_argument("--only", choices=("teacher", "student", "all"), default="all", help="which model to build")
    parser.add_argument("--seed", type=int, default=None, help="another seed than the recipe's")
    args = parser.parse_args()
    try:
        easy_vqa.data_folder()
        build_pair(pair, args.out, cast(Which, args.only), work=args.work, seed=args.seed)
    except MastersError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(TOY, __doc__, out=PAIR, work=Path("runs/toy-build")))
