"""How much more a process has resident at its worst moment than before."""

from __future__ import annotations

import ctypes
import gc
import threading
from collections.abc import Callable
from pathlib import Path

_STATUS = Path("/proc/self/status")
_RESET = Path("/proc/self/clear_refs")
_SAMPLE_SECONDS = 0.002


def growth(action: Callable[[], object]) -> int:
    """Bytes between what is resident now and the most that is while ``action`` runs."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    before = _resident("VmRSS")
    try:
        _RESET.write_text("5")  # the kernel's high-water mark falls to what is resident
    except OSError:
        return _sampled(action) - before
    action()
    return _resident("VmHWM") - before


def _sampled(action: Callable[[], object]) -> int:
    """The most that was seen, where the kernel does not let its mark be reset."""
    most, done = 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.wait(_SAMPLE_SECONDS):
            most = max(most, _resident("VmRSS"))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        action()
    finally:
        done.set()
        thread.join()
    return most


def _resident(entry: str) -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{entry}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"{_STATUS} has no {entry}")
