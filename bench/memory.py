"""Memory at an action's worst moment: what the process has resident, and what PyTorch has allocated."""

from __future__ import annotations

import ctypes
import gc
import json
import tempfile
import threading
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path

from torch.profiler import ProfilerActivity, profile

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


def allocated(action: Callable[[], object]) -> int:
    """Bytes of tensors at the worst moment while ``action`` runs, without those that were there before.

    Counted from PyTorch's own record of every allocation: nothing that the C library rounds up or keeps is in it, and
    it comes out the same each time.
    """
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        action()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        record.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    changes = sorted((event["ts"], event["args"]["Bytes"]) for event in events if event["name"] == "[memory]")
    if not changes:
        raise RuntimeError("PyTorch's profiler recorded no allocation")
    return max(accumulate(size for _, size in changes))


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
