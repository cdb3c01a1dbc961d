"""The options of ``masters-ray real-weights build``; imports nothing heavy."""

from __future__ import annotations

import argparse
from pathlib import Path

HOME = Path("runs/real_weights")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``masters-ray real-weights build`` to its parser."""
    parser.add_argument("--out", type=Path, default=HOME / "pair", help="folder of the pair (default: %(default)s)")
    parser.add_argument(
        "--work", type=Path, default=HOME / "build", help="folder of the checkpoints (default: %(default)s)"
    )
    parser.add_argument("--only", choices=("teacher", "student", "all"), default="all", help="which model to build")
    parser.add_argument("--seed", type=int, default=None, help="another seed than the recipe's")
