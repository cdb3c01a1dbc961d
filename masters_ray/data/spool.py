"""The spool of a source: a file with its problems, each read when it is asked for. The usable rows stand there as
msgpack, behind them an index and, in 20 digits, its place. The index has the taken rows in their seeded order, the
picture files that were read, the key of what made the spool, and findings about the source."""

import hashlib
import json
import os
import re
import unicodedata
import weakref
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, overload

import msgpack
import numpy as np

from masters_ray.data.pictures import Stamp, stamp
from masters_ray.data.texts import LONGEST, cut
from masters_ray.errors import DataError
from masters_ray.files import MADE_AGAIN
from masters_ray.records import Picture, Problem, Rejected

FORMAT = 6
THREADS = min(32, 2 * len(os.sched_getaffinity(0)))
"""Threads that read files: more than CPUs, for network disks serve many reads."""
_ROW = np.dtype([("start", "<i8"), ("end", "<i8"), ("digest", "S16"), ("asked", "S16"), ("shown", "S16")])
_PLACE = 20


class Problems(Sequence[Problem]):
    """The problems of a source in their seeded order, and what was found in it; thread-safe."""

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
            found = json.loads(index["found"])
            self.accepted: int = found["accepted"]
            """Usable rows of the source, also those that were not taken."""
            self.rejected = [Rejected(**one) for one in found["rejected"]]
            self.changes: dict[str, int] = found["changes"]
            """Change made while decoding ("turned upright") → number of pictures, over the usable rows."""
            self.remarks: list[str] = found["remarks"]
            """Sentences about the source, such as columns that are not read."""
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


@dataclass(frozen=True, kw_only=True)
class MappedRow:
    """A row of a source as a problem, or why it is rejected."""

    where: str
    outcome: Problem | Rejected
    """A problem has the digests of its pictures."""
    unused: list[str]
    """Columns with a value that are not read."""
    changes: list[str]
    files: dict[str, Stamp]
    """Picture files that were read, with their stamps from before."""


class SpoolWriter:
    """Writes a spool into an empty file: its rows in their order, then the index."""

    def __init__(self, content: BinaryIO) -> None:
        self._content = content
        self.kinds: list[str | None] = []
        """Kind of each row; None: not usable."""
        self._rows: dict[int, bytes] = {}
        self._rejected: list[Rejected] = []
        self._ids: set[str] = set()
        self._renamed: list[str] = []
        self._unused: dict[str, None] = {}
        self._changes: Counter[str] = Counter()
        self._files: dict[str, Stamp] = {}

    def add(self, mapped: MappedRow) -> None:
        """Adds the next row; makes a problem's id unique by its row number (``id#17``)."""
        for path, found in mapped.files.items():
            self._files.setdefault(path, found)
        self._unused |= dict.fromkeys(mapped.unused)
        self._changes.update(mapped.changes)
        if isinstance(problem := mapped.outcome, Rejected):
            self._rejected.append(problem)
            self.kinds.append(None)
            return
        while problem.id in self._ids:
            problem = replace(problem, id=f"{problem.id}#{mapped.where.rpartition(':')[2]}")
        if problem is not mapped.outcome:
            self._renamed.append(problem.id)
        self._ids.add(problem.id)
        seen = [picture.digest or picture.path for picture in problem.pictures]
        words = " ".join(re.findall(r"\w+", unicodedata.normalize("NFKC", problem.question).casefold()))
        start, pictures = self._content.tell(), [vars(picture) for picture in problem.pictures]
        self._content.write(msgpack.packb(vars(problem) | {"pictures": pictures}))
        placed = (start, self._content.tell(), problem.digest, _digest([words, seen]), _digest(seen))
        self._rows[len(self.kinds)] = np.array(placed, _ROW).tobytes()
        self.kinds.append(problem.kind)

    def finish(self, order: Sequence[int], key: str) -> None:
        """order: rows in their seeded order; key: everything that decides the content."""
        place, rows = self._content.tell(), b"".join(self._rows[row] for row in order)
        found = {"accepted": len(self._rows), "rejected": [vars(one) for one in self._rejected]}
        found |= {"changes": self._changes, "remarks": list(self._remarks())}
        index = {"key": key, "found": json.dumps(found), "rows": rows, "files": self._files}
        self._content.write(msgpack.packb(index) + f"{place:0{_PLACE}}".encode())

    def _remarks(self) -> Iterator[str]:
        if self._unused:
            yield f"columns that are not used: {cut(', '.join(self._unused), LONGEST)}"
        if self._renamed:
            told = "rows have the id of an earlier one, which was made unique by their row numbers"
            yield f"{len(self._renamed)} {told} ({self._renamed[0]})"
        if (many := len({*self.kinds} - {None})) > 50:
            told = "kinds of question, too many to compare one by one (accuracy is the mean over them)"
            yield f"{many} {told}: group them in the column kind, or leave it out"


def _digest(content: object) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
