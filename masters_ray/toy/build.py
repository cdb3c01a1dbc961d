"""Build the toy pair: ``masters-ray toy build``. The same command goes on where a killed one stopped.

easy-vqa ─► tower ─► judge ─► language ─► bfloat16 files ─► figures on the test pictures ─► manifest.json
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Literal, cast

import torch
from rich.console import Console

from masters_ray import easy_vqa
from masters_ray.errors import MastersError
from masters_ray.toy import manifest, models
from masters_ray.toy.checkpoint import Checkpoints
from masters_ray.toy.options import add_arguments
from masters_ray.toy.pictures import read_pictures
from masters_ray.toy.recipe import RECIPES, Name, Recipe
from masters_ray.toy.tokenizer import make_tokenizer
from masters_ray.toy.train import Data, Trainer

Which = Literal["teacher", "student", "all"]

__all__ = ["add_arguments", "build", "main"]


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
    """Train ``only`` (or both), write their folders below ``out`` and bring ``manifest.json`` up to date.

    ``work`` keeps the checkpoints. ``stop_after`` leaves after so many steps of a stage and ``test_limit`` bounds the
    test pictures, for tests. Returns False when ``stop_after`` cut the build short. One thread is used: two models
    are built side by side by two processes. Raises DataError when easy-vqa is missing and CheckpointError when
    ``work`` holds states of another recipe.
    """
    torch.set_num_threads(1)
    console = console or Console()
    recipes = recipes or RECIPES
    names = list(recipes) if only == "all" else [only]
    tokenizer = make_tokenizer()
    pictures = read_pictures("train")
    for name in names:
        recipe = recipes[name] if seed is None else recipes[name].with_seed(seed)
        data = Data.split(pictures, recipe.held_out)
        checkpoints = Checkpoints(work / name, recipe)
        began = time.monotonic()
        model = Trainer(recipe, data, tokenizer, checkpoints, console, stop_after).run()
        if model is None:
            return False
        models.save(model, models.make_processor(recipe.shape, tokenizer), out / name)
        seconds = time.monotonic() - began
        entry = manifest.describe(out / name, test_limit=test_limit)
        entry |= {"recipe": asdict(recipe), "seconds_of_the_last_run": round(seconds, 1)}
        manifest.update(out, name, entry)
        console.print(f"{name}: {entry['accuracy']}, as a judge {entry['judge']}", highlight=False)
    return True


def main(args: argparse.Namespace) -> int:
    """Run ``build``; 0 when the pair is complete, 2 for an error that says how to mend it."""
    try:
        easy_vqa.data_folder()
        build(args.out, cast(Which, args.only), work=args.work, seed=args.seed)
    except MastersError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    own = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(own)
    sys.exit(main(own.parse_args()))
