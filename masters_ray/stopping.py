"""Signals that end the program: each ends it as Ctrl-C does, with the exit code that a shell expects of it."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Collection
from types import FrameType

GOES_ON = "the same command goes on from what is finished."
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_SECONDS_TO_REPEAT = 2.0
"""timeout and closing terminals send a signal to a process and to its group, so that it comes twice."""
_SECONDS_TO_DIE = 10.0


_first: list[tuple[signal.Signals, float]] = []
"""The first signal that came, and when."""


def listen() -> None:
    """From now on Ctrl-C, SIGTERM and SIGHUP raise KeyboardInterrupt in the main thread; one that comes more than two
    seconds after the first ends this process and its children at once. Signals that the process was started to ignore
    (nohup) stay ignored. To be called again when a library has installed handlers of its own; does nothing outside the
    main thread."""
    if threading.current_thread() is threading.main_thread():
        for number in _SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, _stop)


def forget() -> None:
    """Nothing came yet."""
    _first.clear()


def asked() -> bool:
    """Whether a signal came."""
    return bool(_first)


def outcome() -> tuple[str, int]:
    """What happened, in words, and the exit code: 130 for Ctrl-C, 143 for SIGTERM, 129 for SIGHUP."""
    number = _first[0][0] if _first else signal.SIGINT
    return "interrupted" if number == signal.SIGINT else f"stopped by {number.name}", 128 + number


def _stop(number: int, _: FrameType | None) -> None:
    if not _first:
        _first.append((signal.Signals(number), time.monotonic()))
        # Not a class of our own: what waits inside Ray raises this one in its place.
        raise KeyboardInterrupt
    if time.monotonic() - _first[0][1] > _SECONDS_TO_REPEAT:
        told, exit_code = outcome()
        end(f"{told}, asked again and ended at once; {GOES_ON}", exit_code)


def end(told: str, exit_code: int) -> None:
    """End this process and its children without any unwinding: what is finished lies whole on disk."""
    print(f"masters-ray: {told}", file=sys.stderr, flush=True)
    end_children()
    os._exit(exit_code)


def children() -> set[int]:
    """Process ids of this process's descendants."""
    import psutil

    return {child.pid for child in psutil.Process().children(recursive=True)}


def end_children(spared: Collection[int] = ()) -> None:
    """Kill this process's descendants, but not those that are spared, and wait until they are gone."""
    import psutil

    found = [child for child in psutil.Process().children(recursive=True) if child.pid not in spared]
    for child in found:
        try:
            child.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(found, timeout=_SECONDS_TO_DIE)
