"""The learner's speed and memory, against TRL and against itself: ``make bench-learner``.

``python -m bench.learner`` measures; ``--markdown FILE`` prints what was measured before.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from masters_ray.learner.work import ALLOCATOR

_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "DS_ACCELERATOR": "cpu",
    "GLIBC_TUNABLES": ALLOCATOR,  # as the learner's workers have it
    "TOKENIZERS_PARALLELISM": "false",
}
_PACKAGES = ("torch", "trl", "transformers", "deepspeed")
_SHOWN_OF_A_FAILURE = 4000


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    if options.part:
        _part(options.part, options.out)
    elif options.markdown:
        from bench.report import markdown

        print(markdown(json.loads(options.markdown.read_text(encoding="utf-8"))), end="")
    else:
        measure(options.repeats, options.only, options.out)


def measure(repeats: int, only: Sequence[str], out: Path) -> None:
    """Take the figures (all, or those named) and write them to ``out``, which grows figure by figure."""
    os.environ.update(_ENVIRONMENT)
    from bench.figures import figures
    from bench.report import line, machine

    if unknown := set(only) - set(figures()):
        sys.exit(f"--only: expected some of {', '.join(figures())}; found {', '.join(sorted(unknown))}")
    result: dict[str, Any] = {"machine": machine(_PACKAGES), "repeats": repeats, "tables": {}}
    for key, figure in figures().items():
        if only and key not in only:
            continue
        started = time.monotonic()
        outcome = figure.take(_run, repeats)
        result[key] = outcome.value
        result["tables"][key] = entry = {
            "says": figure.says,
            "value": outcome.value,
            "aim": str(figure.aim),
            "met": figure.aim.met(outcome),
            "also": outcome.also,
            "rows": outcome.rows,
            "raw": outcome.raw,
            "seconds": round(time.monotonic() - started, 1),
        }
        print(f"{line(key, entry)}   ({entry['seconds']:.0f} s)", flush=True)
        _write(out, result)
    print(f"written to {out}")


def _run(part: str, *arguments: Any) -> dict[str, Any]:
    """What a part returns, from a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        command = [sys.executable, "-m", "bench.learner", "--part", part, *map(str, arguments), "--out", str(answer)]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        if done.returncode:
            sys.exit(f"{part} {arguments} failed:\n{done.stdout[-_SHOWN_OF_A_FAILURE:]}")
        found: dict[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
        return found


def _part(words: Sequence[str], out: Path) -> None:
    import torch

    from bench.parts import PARTS

    torch.set_num_threads(1)
    name, *arguments = words
    _write(out, PARTS[name](*(int(word) if word.isdigit() else word for word in arguments)))


def _write(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.learner", description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5, help="of every ratio; the median counts")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="figures to take")
    parser.add_argument("--out", type=Path, default=Path("runs/bench/learner.json"))
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="print a result as Markdown instead")
    parser.add_argument("--part", nargs="+", help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    main()
