"""How the end-to-end tests call the program, and what they read from a run."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import NO_CHECKS, ROOT

long_form = pytest.mark.skipif("MASTERS_LONG" not in os.environ, reason="part of make test-long")
"""What takes minutes and is covered in parts by shorter tests."""
PROGRAM = [str(Path(sys.executable).with_name("masters-ray"))]
SMALL = [
    "data.train.rows=48",
    "data.held_out.rows=48",
    "rollout.batch_rows=8",
    "learner.groups_per_step=8",
    "learner.tokens_per_micro_batch=200",
    "learner.checkpoint_every=2",
    "evaluation.examples=2",
    NO_CHECKS,
]
"""The demo in small: three stages of 16 questions, six optimizer steps."""


def environment(**more: str) -> dict[str, str]:
    """The tests' environment without a cluster's address."""
    return {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | more


def masters_ray(*words: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Run the program from the project's directory to its end."""
    return subprocess.run(
        [*PROGRAM, *words], cwd=ROOT, env=environment(**more), capture_output=True, text=True, timeout=500, check=False
    )


def summary(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run / "summary.json").read_text())
    return content
