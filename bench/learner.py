"""The learner's speed and memory, against TRL and against itself: ``make bench-learner``.

``python -m bench.learner`` measures; ``--markdown FILE`` prints what was measured before.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from typing import Any

from bench.aims import entry
from bench.command import command
from bench.figures import figures
from bench.report import machine
from masters_ray.learner.work import ALLOCATOR

_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "DS_ACCELERATOR": "cpu",
    "GLIBC_TUNABLES": ALLOCATOR,  # as the learner's workers have it
    "TOKENIZERS_PARALLELISM": "false",
}
_SHOWN_OF_A_FAILURE = 4000


def measure(repeats: int) -> dict[str, Any]:
    """All figures, and what stands behind each, down to every repeat."""
    tables = {}
    for key, figure in figures().items():
        started = time.monotonic()
        outcome = figure.take(_run, repeats)
        tables[key] = entry(figure.says, outcome.value, figure.aim, outcome.rows, outcome.also)
        tables[key] |= {"raw": outcome.raw, "seconds": round(time.monotonic() - started, 1)}
        print(f"{key}: {tables[key]['seconds']:.0f} s", flush=True)
    values = {key: one["value"] for key, one in tables.items()}
    on = machine(("torch", "trl", "transformers", "deepspeed"))
    return {"machine": on, "repeats": repeats, **values, "tables": tables}


def _run(part: str, *arguments: Any) -> dict[str, Any]:
    """What a part prints last, from a process of its own."""
    words = [sys.executable, "-m", "bench.parts", part, *map(str, arguments)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=os.environ | _ENVIRONMENT)
    if done.returncode:
        sys.exit(f"{part} {arguments} failed:\n{(done.stdout + done.stderr)[-_SHOWN_OF_A_FAILURE:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


if __name__ == "__main__":
    command("learner", __doc__.splitlines()[0], 5, measure)
