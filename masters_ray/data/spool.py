"""The spool of a source: a file with its problems, each read when it is asked for.

The usable rows stand there as msgpack, behind them an index and, in 20 digits, its place. The index has the taken rows
in their seeded order, the picture files that were read, the key of what made the spool, and findings about the source.
"""

import hashlib
import json
import os
import re
import unicodedata
import weakref
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias, overload

import msgpack
import numpy as np

from masters_ray.errors import DataError
from masters_ray.files import MADE_AGAIN
from masters_ray.records import Picture, Problem

FORMAT = 6
"""Version of the file's format."""
THREADS = min(32, 2 * len(os.sched_getaffinity(0)))
"""Threads that read files: more than CPUs, for network disks serve many reads."""
_ROW = np.dtype([("start", "<i8"), ("end", "<i8"), ("digest", "S16"), ("asked", "S16"), ("shown", "S16")])
_PLACE = 20

Stamp: TypeAlias = tuple[int, int]
"""A file's size in bytes and modification time in ns; (-1, -1): no readable file."""


class Problems(Sequence[Problem]):
    """The problems of a spool as a sequence; thread-safe."""

    def __init__(self, file: Path) -> None:
        """Raises DataError when the file is missing or not a whole spool."""
        self._file = file
        with self._whole():
            self._descriptor = os.open(file, os.O_RDONLY)
            weakref.finalize(self, os.close, self._descriptor)
            end = os.fstat(self._descriptor).st_size - _PLACE
            self._index = int(os.pread(self._descriptor, _PLACE, end)), end
            index = self._read(*self._index)
            self.key: str = index["key"]
            self.note: dict[str, Any] = json.loads(index["note"])
            self.rows = np.frombuffer(index["rows"], _ROW)
            """[problems]: place in the file, and digests. digest: of the whole problem; shown: of its pictures'
            contents; asked: of its pictures and the question's words."""
            self.digests = self.rows["digest"]

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, where: int) -> Problem: ...

    @overload
    def __getitem__(self, where: slice) -> list[Problem]: ...

    def __getitem__(self, where: int | slice) -> Problem | list[Problem]:
        """Raises IndexError beyond the end, DataError when the file is damaged."""
        if isinstance(where, slice):
            return [self[position] for position in range(len(self))[where]]
        start, end, *_ = self.rows[where].item()
        with self._whole():
            fields = self._read(start, end)
            pictures = tuple(Picture(**picture) for picture in fields["pictures"])
            return Problem(**fields | {"choices": tuple(fields["choices"]), "pictures": pictures})

    def digest(self, position: int) -> str:
        """Returns ``self[position].digest`` without reading the problem."""
        return bytes(self.digests[position]).decode()

    def pictures_are_as_noted(self) -> bool:
        """Whether every picture file still has the stamp that it had when the source was read."""
        noted = list(self._read(*self._index)["files"].items())
        parts = [noted[first::THREADS] for first in range(THREADS)]
        with ThreadPoolExecutor(THREADS) as executor:
            return all(executor.map(lambda part: all(stamp(path) == tuple(found) for path, found in part), parts))

    def _read(self, start: int, end: int) -> dict[str, Any]:
        return msgpack.unpackb(os.pread(self._descriptor, end - start, start))

    @contextmanager
    def _whole(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError, ArithmeticError, LookupError, TypeError) as error:
            raise DataError(f"{self._file}: expected problems and their index ({error}). {MADE_AGAIN}") from error


class SpoolWriter:
    """Writes a spool into an empty file: its rows in their order, then the index."""

    def __init__(self, content: BinaryIO) -> None:
        self._content = content
        self._ids: set[str] = set()
        self._rows: dict[int, tuple[int, int, str, str, str]] = {}
        self._files: dict[str, Stamp] = {}

    def add(self, row: int, problem: Problem, where: str) -> str:
        """Adds the problem of the row with that index; returns its id, made unique (``id#17``) by the row number in
        ``where``."""
        while problem.id in self._ids:
            problem = replace(problem, id=f"{problem.id}#{where.rpartition(':')[2]}")
        self._ids.add(problem.id)
        seen = [picture.digest or picture.path for picture in problem.pictures]
        words = " ".join(re.findall(r"\w+", unicodedata.normalize("NFKC", problem.question).casefold()))
        start = self._content.tell()
        pictures = [vars(picture) for picture in problem.pictures]
        self._content.write(msgpack.packb(vars(problem) | {"pictures": pictures}))
        self._rows[row] = (start, self._content.tell(), problem.digest, _digest([words, seen]), _digest(seen))
        return problem.id

    def looked_at(self, files: Mapping[str, Stamp]) -> None:
        """Records picture files and their stamps; the first stamp of a file counts."""
        for path, found in files.items():
            self._files.setdefault(path, found)

    def finish(self, order: Sequence[int], key: str, note: Mapping[str, Any]) -> None:
        """order: rows in their seeded order; key: everything that decides the content; note: further values to keep."""
        place, rows = self._content.tell(), np.array([self._rows[row] for row in order], _ROW)
        index = {"key": key, "note": json.dumps(note), "rows": rows.tobytes(), "files": self._files}
        self._content.write(msgpack.packb(index) + f"{place:0{_PLACE}}".encode())


def stamp(path: str) -> Stamp:
    with suppress(OSError, ValueError):
        found = Path(path).stat()
        if os.access(path, os.R_OK):
            return found.st_size, found.st_mtime_ns
    return -1, -1


def _digest(content: object) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
