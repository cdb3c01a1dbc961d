"""What a plan says of a learner's memory, beside PyTorch's own record of every allocation in a process of its own."""

import json
import subprocess
import sys

import pytest

from tests.conftest import PAIR, ROOT
from tests.e2e.runs import environment, long_form


@pytest.mark.parametrize(
    "words",
    [
        "zero_stage=0",
        pytest.param("zero_stage=2 tokens=80 logits_mib=16", marks=long_form),
        "zero_stage=3 activation_checkpointing=true",
    ],
)
def test_a_learner_allocates_what_is_planned(words: str) -> None:
    """Within a tenth."""
    program = [sys.executable, "-m", "bench.planned_memory", str(PAIR / "student"), *words.split()]
    done = subprocess.run(program, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=300, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    assert 0.9 <= found["planned"] / found["allocated"] <= 1.1, found
