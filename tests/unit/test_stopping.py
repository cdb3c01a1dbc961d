import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

CODES = {signal.SIGINT: (130, "interrupted")}
CODES |= {signal.SIGTERM: (143, "stopped by SIGTERM"), signal.SIGHUP: (129, "stopped by SIGHUP")}
PROGRAM = """
import subprocess, sys, time
from masters_ray import cli, stopping
stopping._SECONDS_TO_REPEAT = 0.2
def command(_):
    {}
cli._validate = command
sys.exit(cli.main(['validate', 'x']))
"""


def _hears_signals() -> None:
    """Tests that were started in a shell's background, or by nohup, ignore some, and what they start inherits that."""
    for number in CODES:
        signal.signal(number, signal.SIG_DFL)


def started(command: str, before: Callable[[], object] = _hears_signals) -> tuple[subprocess.Popen[str], str]:
    """The program whose command does that, and the first line that it prints."""
    words, pipe = [sys.executable, "-c", PROGRAM.format(command.replace("\n", "\n    "))], subprocess.PIPE
    process = subprocess.Popen(words, stdout=pipe, stderr=pipe, text=True, preexec_fn=before)
    assert process.stdout is not None
    return process, process.stdout.readline()


@pytest.mark.parametrize("number", CODES)
def test_each_signal_ends_the_program_with_its_own_code_and_says_that_it_can_go_on(number: signal.Signals) -> None:
    process, _ = started("print('there', flush=True)\ntime.sleep(60)")
    process.send_signal(number)
    _, told = process.communicate(timeout=20)
    code, cause = CODES[number]
    assert process.returncode == code
    assert told == f"masters-ray: {cause}; the same command goes on from what is finished.\n"


def test_a_closed_terminal_does_not_end_what_nohup_started() -> None:
    command = "print('there', flush=True)\ntime.sleep(1)\nreturn 7"
    process, _ = started(command, lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    process.send_signal(signal.SIGHUP)
    process.communicate(timeout=20)
    assert process.returncode == 7


def test_a_second_signal_ends_the_program_and_its_children_at_once() -> None:
    """A program that does not come to its end after the first one, as when something hangs."""
    hangs = "try:\n    print(child.pid, flush=True)\n    time.sleep(60)\nfinally:\n    time.sleep(60)"
    process, child = started("child = subprocess.Popen(['sleep', '60'])\n" + hangs)
    process.terminate()
    time.sleep(0.5)
    process.terminate()
    _, told = process.communicate(timeout=20)
    assert process.returncode == 143
    assert "asked again and ended at once" in told
    assert not Path(f"/proc/{int(child)}").exists()


@pytest.mark.parametrize(
    ("limit", "number", "code", "cause"),
    [
        (2, 0, 75, "stopped after 2s as run.stop_after says"),
        (3, signal.SIGTERM, 143, "stopped by SIGTERM"),
    ],
)
def test_a_program_whose_time_is_over_ends_with_a_code_of_its_own(
    limit: int, number: int, code: int, cause: str
) -> None:
    """The end of its time is not a second signal: after a SIGTERM it may take longer."""
    hangs = "try:\n    print('there', flush=True)\n    time.sleep(60)\nfinally:\n    time.sleep(2.5)"
    process, _ = started(f"stopping.stop_after({limit}, '{limit}s')\n{hangs}")
    if number:
        process.send_signal(number)
    _, told = process.communicate(timeout=20)
    assert process.returncode == code
    assert told == f"masters-ray: {cause}; the same command goes on from what is finished.\n"
