"""Signals, sent to the program itself."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}
TOLD = {signal.SIGINT: "interrupted", signal.SIGTERM: "stopped by SIGTERM", signal.SIGHUP: "stopped by SIGHUP"}
WAITS = (
    "import sys, time; from masters_ray import cli; cli._validate = lambda _: {}; sys.exit(cli.main(['validate', 'x']))"
)


def _hears_signals() -> None:
    """Tests that were started in a shell's background, or by nohup, ignore some, and what they start inherits that."""
    for number in CODES:
        signal.signal(number, signal.SIG_DFL)


def started(waits: str, **options: object) -> subprocess.Popen[str]:
    """The program with a command that does ``waits``, once it is there."""
    options = {"preexec_fn": _hears_signals} | options
    process = subprocess.Popen(
        [sys.executable, "-c", WAITS.format(waits)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,  # type: ignore[call-overload]
    )
    assert process.stdout.readline() == "there\n"
    return process


HERE = "print('there', flush=True)"


@pytest.mark.parametrize("number", CODES)
def test_each_signal_ends_the_program_with_its_own_code_and_says_that_it_can_go_on(number: signal.Signals) -> None:
    with started(f"({HERE}, time.sleep(60))") as process:
        process.send_signal(number)
        _, told = process.communicate(timeout=20)
    assert process.returncode == CODES[number]
    assert told == f"masters-ray: {TOLD[number]}; the same command goes on from what is finished.\n"


def test_a_closed_terminal_does_not_end_what_nohup_started() -> None:
    with started(
        f"({HERE}, time.sleep(1), 7)[-1]", preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)
    ) as process:
        process.send_signal(signal.SIGHUP)
        process.communicate(timeout=20)
    assert process.returncode == 7


def test_a_second_signal_ends_the_program_and_its_children_at_once(tmp_path: Path) -> None:
    """A program that does not come to its end after the first one, as when something hangs."""
    script = tmp_path / "hangs.py"
    script.write_text(
        "import subprocess, sys, time\nfrom masters_ray import cli, stopping\nstopping._SECONDS_TO_REPEAT = 0.2\n"
        "child = subprocess.Popen(['sleep', '60'])\n"
        "def hangs(_):\n    try:\n        print(child.pid, flush=True)\n        time.sleep(60)\n"
        "    finally:\n        time.sleep(60)\n"
        "cli._validate = hangs\nsys.exit(cli.main(['validate', 'x']))\n"
    )
    with subprocess.Popen(
        [sys.executable, script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    ) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        process.terminate()
        time.sleep(0.5)
        process.terminate()
        _, told = process.communicate(timeout=20)
    assert process.returncode == 143
    assert "asked again and ended at once" in told
    assert not Path(f"/proc/{child}").exists()
