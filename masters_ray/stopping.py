"""Handles SIGINT, SIGTERM and SIGHUP: all end the program as Ctrl-C does, each with its exit code 128 + signal. So does
``run.stop_after``, by a timer and SIGALRM, with exit code 75."""

import os
import signal
import sys
import threading
import time
from collections.abc import Collection
from contextlib import suppress
from types import FrameType

GOES_ON = "the same command goes on from what is finished."
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_SECONDS_TO_REPEAT = 2.0
"""A signal that comes again this soon is the same one: timeout and terminals signal the process and its group."""

_started = time.monotonic()
_limit = ""
"""What run.stop_after says."""
_first: list[tuple[signal.Signals, float]] = []
"""The first signal received and its time (monotonic seconds); empty before."""


def listen() -> None:
    """Makes each signal raise KeyboardInterrupt in the main thread; more than two seconds later, another ends this
    process and its children at once. A signal that the process was started to ignore (nohup) stays ignored. Call again
    after a library installed its own handlers; does nothing outside the main thread."""
    if threading.current_thread() is threading.main_thread():
        for number in _SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, _stop)


def stop_after(seconds: int, told: str) -> None:
    """Stops the program, by SIGALRM, once it has run so many seconds; 0: never. told: the same as it was written."""
    global _limit
    if seconds:
        _limit = told
        signal.signal(signal.SIGALRM, _stop)
        signal.setitimer(signal.ITIMER_REAL, max(0.001, seconds - (time.monotonic() - _started)))


def forget() -> None:
    _first.clear()


def asked() -> bool:
    return bool(_first)


def outcome() -> tuple[str, int]:
    """Returns what happened, in words, and the exit code, for example 130 for Ctrl-C."""
    number = _first[0][0] if _first else signal.SIGINT
    if number == signal.SIGALRM:
        return f"stopped after {_limit} as run.stop_after says", os.EX_TEMPFAIL
    return "interrupted" if number == signal.SIGINT else f"stopped by {number.name}", 128 + number


def _stop(number: int, _: FrameType | None) -> None:
    if not _first:
        _first.append((signal.Signals(number), time.monotonic()))
        # Not a class of our own: calls that wait inside Ray would turn it into KeyboardInterrupt.
        raise KeyboardInterrupt
    if number != signal.SIGALRM and time.monotonic() - _first[0][1] > _SECONDS_TO_REPEAT:
        told, exit_code = outcome()
        end(f"{told}, asked again and ended at once; {GOES_ON}", exit_code)


def end(told: str, exit_code: int) -> None:
    """Prints and ends this process and its children without unwinding: finished files are whole on disk."""
    if os.isatty(1):
        os.write(1, b"\r\x1b[K\x1b[?25h")  # shows the cursor, which a live display hides
    print(f"masters-ray: {told}", file=sys.stderr, flush=True)
    end_children()
    os._exit(exit_code)


def children() -> set[int]:
    """Returns the process ids of all descendants."""
    import psutil

    return {child.pid for child in psutil.Process().children(recursive=True)}


def end_children(spared: Collection[int] = ()) -> None:
    """Kills all descendants except ``spared`` (process ids), and waits up to 10 s until they are gone."""
    import psutil

    found = [child for child in psutil.Process().children(recursive=True) if child.pid not in spared]
    for child in found:
        with suppress(psutil.NoSuchProcess):
            child.kill()
    psutil.wait_procs(found, timeout=10)
