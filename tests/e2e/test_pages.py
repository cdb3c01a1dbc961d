"""The documentation's commands that start engines and learners, as they are written, on small files."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import pages, reader
from tests.conftest import ROOT
from tests.e2e.runs import long_form

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(3000), long_form]
TABLE: dict[str, Any] = yaml.safe_load((ROOT / "tests" / "commands.yaml").read_text())


def test_commands_that_take_minutes_run_as_they_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = reader.directory(tmp_path, TABLE["files"])
    said = pages.answers(ROOT)
    says = {TABLE["same"].get(command, command): expected for command, expected in said.items()}
    for step in TABLE["long"]:
        command, told = (step, {}) if isinstance(step, str) else (step["command"], step)
        if "absent" in told:
            shutil.rmtree(here / told["absent"])
        done = reader.call(command, here)
        assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
        for expected in says.get(command, []):
            assert pages.unsaid(expected, done.stdout + done.stderr) == [], command
    monkeypatch.chdir(here)
    for block in pages.blocks(ROOT):
        if block.language == "python" and "runs/demo" in block.text:
            exec(compile(block.text, block.page, "exec"), {})
