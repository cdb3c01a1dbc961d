"""A step under DeepSpeed, for every ZeRO stage and precision: summed right, dropped without a trace."""

import json
import os
import subprocess
import sys
from functools import cache
from typing import Any

import pytest

from tests.e2e.gradient_cases import CASES, RATE

pytestmark = pytest.mark.e2e


@cache
def measured(workers: int) -> dict[str, Any]:
    environment = os.environ | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    process = subprocess.run(
        [sys.executable, "-m", "tests.e2e.gradient_cases", str(workers)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [line for line in process.stdout.splitlines() if line.startswith("RESULT ")]
    assert lines, process.stdout[-2000:] + process.stderr[-4000:]
    return json.loads(lines[0].removeprefix("RESULT "))


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("case", CASES)
def test_steps_are_those_of_plain_pytorch_a_dropped_one_leaves_no_trace_and_a_checkpoint_is_gone_on_from(
    case: str, workers: int
) -> None:
    found = measured(workers)[case]
    assert found["dropped_against_never"] == 0.0
    assert found["norms_dropped_against_never"] == 0.0
    if case.startswith("float32"):
        assert found["norms_against_plain"] < 2e-6
        assert found["against_plain"] < 2e-6
    else:  # Adam turns the sign of a gradient near zero into a whole step, so only the mean is close
        assert found["norms_against_plain"] < 3e-2
        assert found["mean_against_plain"] < 0.2 * RATE
    assert found["loaded_against_written"] == 0.0
    assert found["told"] == {"steps": [{"loss": 1.0}]}
    assert "is no checkpoint of the learner's; nothing of it was run" in found["refusal"]
    assert not found["ran"], "a checkpoint that names a program is refused"


@pytest.mark.parametrize("case", [name for name in CASES if name.startswith("bfloat16")])
def test_updates_below_the_resolution_of_bfloat16_add_up(case: str) -> None:
    after_one, after_sixty = measured(1)[case]["moved"]
    assert after_one < 0.1 * after_sixty
