"""Memory at an action's worst moment: what the process has resident, and what PyTorch has allocated."""

from __future__ import annotations

import ctypes
import gc
import json
import tempfile
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path

from torch.profiler import ProfilerActivity, profile

_STATUS = Path("/proc/self/status")
_RESET = Path("/proc/self/clear_refs")


def growth(action: Callable[[], object]) -> int:
    """Bytes between what is resident now and the most that is while ``action`` runs."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    before = _resident("VmRSS")
    _RESET.write_text("5")  # the kernel's high-water mark falls to what is resident
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


def _resident(entry: str) -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{entry}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"{_STATUS} has no {entry}")
