"""Every benchmark in its small form, as a program: none must rot unseen between two measurements."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.e2e.runs import environment, long_form

pytestmark = pytest.mark.e2e

FIGURES = {
    "learner": 9,
    "store": 3,
    "pregen": 8,
    "semi_online": 3,
    "plan": 2,
    "data": 4,
}
LONG = ("semi_online", "plan", "pregen")
"""These start engines or run the demo, as other tests do."""


@pytest.mark.parametrize("name", [pytest.param(one, marks=long_form) if one in LONG else one for one in FIGURES])
def test_a_benchmark_takes_all_its_figures_in_the_small_form(name: str, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    command = [sys.executable, "-m", f"bench.{name}", "--repeats", "1", "--out", str(out)]
    small = environment(MASTERS_BENCH_SMALL="1", OMP_NUM_THREADS="1")
    done = subprocess.run(command, cwd=ROOT, env=small, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    tables = json.loads(out.read_text())["tables"]
    assert len(tables) == FIGURES[name]
    assert all(isinstance(entry["value"], float | int) and entry["rows"] for entry in tables.values())
