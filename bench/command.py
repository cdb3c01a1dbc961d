"""What a benchmark does when it is called: measure and write, or print what was measured before."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.report import line, markdown


def command(name: str, says: str, repeats: int, measure: Callable[[int], dict[str, Any]]) -> None:
    """``python -m bench.NAME``. repeats: how many by default; measure: repeats → the result, with its tables."""
    parser = argparse.ArgumentParser(prog=f"python -m bench.{name}", description=says)
    parser.add_argument("--repeats", type=int, default=repeats, help="the median counts")
    parser.add_argument("--out", type=Path, default=Path(f"runs/bench/{name}.json"))
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="print a result as Markdown instead")
    options = parser.parse_args()
    if options.markdown:
        print(markdown(json.loads(options.markdown.read_text(encoding="utf-8"))), end="")
        return
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    result = measure(options.repeats)
    for key, entry in result["tables"].items():
        print(line(key, entry))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1), encoding="utf-8")
    print(f"written to {options.out}")
