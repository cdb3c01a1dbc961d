"""The picture files that a spool was made from: has one of them changed since?"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa

SCHEMA = pa.schema(
    [
        pa.field("path", pa.string(), nullable=False),
        pa.field("size", pa.int64(), nullable=False),
        pa.field("mtime_ns", pa.int64(), nullable=False),
    ]
)
_AT_A_TIME = 256

Stamp = tuple[int, int]
"""Bytes, and when they were written last (ns)."""
_NONE: Stamp = (-1, -1)
"""There is no file that can be read."""


def threads() -> int:
    """How many look at files: more than there are CPUs, for a disk of the network serves many at a time."""
    return min(32, 2 * len(os.sched_getaffinity(0)))


def stamp(path: str) -> Stamp:
    """What changes when a file does."""
    try:
        found = Path(path).stat()
        readable = stat.S_ISREG(found.st_mode) and os.access(path, os.R_OK)
    except (OSError, ValueError):
        return _NONE
    return (found.st_size, found.st_mtime_ns) if readable else _NONE


def unchanged(noted: Path) -> bool:
    """Whether each file in ``noted``, an Arrow file of SCHEMA, is as it was; False when it cannot be read."""
    try:
        with pa.OSFile(str(noted)) as content, ThreadPoolExecutor(threads()) as executor:
            reader = pa.ipc.open_file(content)
            for number in range(reader.num_record_batches):
                rows = reader.get_batch(number).to_pydict()
                parts = [slice(start, start + _AT_A_TIME) for start in range(0, len(rows["path"]), _AT_A_TIME)]
                stamps = [one for part in executor.map(_stamps, [rows["path"][part] for part in parts]) for one in part]
                if stamps != list(zip(rows["size"], rows["mtime_ns"], strict=True)):
                    return False
    except (OSError, pa.ArrowException, KeyError):
        return False
    return True


class Notes:
    """Files as rows of SCHEMA, each once."""

    def __init__(self) -> None:
        self._known: set[bytes] = set()
        self._waiting: list[dict[str, str | int]] = []

    def add(self, found: Sequence[tuple[str, Stamp]]) -> int:
        """Returns how many wait to be taken by ``batch``."""
        for path, (size, mtime_ns) in found:
            name = hashlib.blake2b(os.fsencode(path), digest_size=8).digest()
            if name not in self._known:
                self._known.add(name)
                self._waiting.append({"path": path, "size": size, "mtime_ns": mtime_ns})
        return len(self._waiting)

    def batch(self) -> pa.RecordBatch:
        """Those that wait."""
        waiting, self._waiting = self._waiting, []
        return pa.RecordBatch.from_pylist(waiting, schema=SCHEMA)


def _stamps(paths: Sequence[str]) -> list[Stamp]:
    return [stamp(path) for path in paths]
