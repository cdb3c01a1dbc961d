"""The options of ``masters-ray toy build``; imports nothing heavy."""

from __future__ import annotations

import argparse
from pathlib import Path

from masters_ray.toy import PAIR


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``masters-ray toy build`` to its parser."""
    parser.add_argument("--out", type=Path, default=PAIR, help="folder of the pair (default: the shipped one)")
    parser.add_argument("--work", type=Path, default=Path("runs/toy-build"), help="folder of the checkpoints")
    parser.add_argument("--only", choices=("teacher", "student", "all"), default="all", help="which model to build")
    parser.add_argument("--seed", type=int, default=None, help="another seed than the recipe's")
