"""The spool of a mixture: a file with its problems, each read when it is asked for. The usable questions stand there as
msgpack in the order in which they were read, between them blocks of rejected rows and of notes of picture files; then
columns with their places and digests, and their seeded order; last an index and, in 20 digits, its place. Only few
questions are in memory at a time."""

import hashlib
import json
import os
import re
import struct
import unicodedata
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, overload

import msgpack
import numpy as np

from masters_ray.data.pictures import Stamp, stamp
from masters_ray.data.texts import LONGEST, cut
from masters_ray.errors import DataError
from masters_ray.files import MADE_AGAIN
from masters_ray.records import Picture, Problem, Rejected

FORMAT = 7
THREADS = min(32, 2 * len(os.sched_getaffinity(0)))
"""Threads that read files: more than CPUs, for network disks serve many reads."""
_FIELDS = {**dict.fromkeys(("start", "digest", "asked", "shown", "id"), "<u8"), "number": "<u4", "size": "<u4"}
_ENTRY = np.dtype(list(_FIELDS.items()))
_PLACE = 20
_AT_A_TIME = 1 << 14  # entries that are read at a time
_NOTES = 2048  # rejected rows, and notes of picture files, in a block; pictures whose repeated notes are left out


@dataclass(frozen=True, kw_only=True)
class SourceCounts:
    """What one source gave."""

    name: str
    path: str
    taken: int  # questions that are used
    set_aside: int  # rows that were read and cannot be used
    size: int | None  # questions of the source; None: not counted
    more: bool  # whether only the first were looked at, and there are more


class Problems(Sequence[Problem]):
    """The problems of a mixture in their seeded order, and what was found in its sources; thread-safe."""

    def __init__(self, file: Path) -> None:
        """Raises DataError when the file is missing or not a whole spool."""
        self._file = file
        with self._whole():
            self._descriptor = os.open(file, os.O_RDONLY)
            weakref.finalize(self, os.close, self._descriptor)
            end = os.fstat(self._descriptor).st_size - _PLACE
            place = int(os.pread(self._descriptor, _PLACE, end))
            index = self._read(place, end - place)
            self.key: str = index["key"]
            self.changes: dict[str, int] = index["changes"]
            """Change made while decoding ("turned upright") → number of pictures, over the usable questions."""
            self.remarks: list[str] = index["remarks"]
            """Sentences about the sources, such as columns that are not read."""
            self.sources = [SourceCounts(**one) for one in index["sources"]]
            self._blocks: dict[str, list[tuple[int, int]]] = index["blocks"]
            self._columns = {name: self._mapped(*place) for name, place in index["columns"].items()}
            self._order = self._columns.pop("order")

    def __len__(self) -> int:
        return len(self._order)

    @overload
    def __getitem__(self, where: int) -> Problem: ...

    @overload
    def __getitem__(self, where: slice) -> list[Problem]: ...

    def __getitem__(self, where: int | slice) -> Problem | list[Problem]:
        """Raises IndexError beyond the end, DataError when the file is damaged."""
        if isinstance(where, slice):
            return [self[position] for position in range(len(self))[where]]
        return self._problem(int(self._order[where]))

    @property
    def accepted(self) -> int:
        """Usable questions that were read."""
        return len(self._columns["start"])

    @property
    def set_aside(self) -> int:
        return sum(one.set_aside for one in self.sources)

    @property
    def mended(self) -> list[str]:
        """What was changed in pictures while they were read, as a sentence; empty for nothing."""
        counts = ", ".join(f"{count} {change}" for change, count in sorted(self.changes.items()))
        return [f"pictures: {counts}"] if counts else []

    @property
    def rejected(self) -> Iterator[Rejected]:
        """Reads the rows that were set aside."""
        for block in self._blocks["rejected"]:
            with self._whole():
                found = self._read(*block)
            yield from (Rejected(**row) for row in found)

    def column(self, name: str) -> np.ndarray:
        """Returns uint64 [problems] in their order: "digest" of the whole problem; "shown": of its pictures' contents;
        "asked": of its pictures and the question's words."""
        return self._columns[name][self._order]

    @cached_property
    def digests(self) -> np.ndarray:
        return self.column("digest")

    def digest(self, position: int) -> str:
        """Returns ``self[position].digest`` without reading the problem."""
        return f"{int(self.digests[position]):016x}"

    def pictures_are_as_noted(self) -> bool:
        """Whether every picture file still has the stamp that it had when the source was read."""
        with ThreadPoolExecutor(THREADS) as executor:
            return all(executor.map(self._as_noted, self._blocks["files"]))

    def _as_noted(self, block: tuple[int, int]) -> bool:
        return all(stamp(path) == (size, when) for path, size, when in self._read(*block))

    def _problem(self, place: int) -> Problem:
        """Returns the question that was added as number ``place``."""
        start, size, number = (int(self._columns[name][place]) for name in ("start", "size", "number"))
        with self._whole():
            fields = self._read(start, size)
            fields["pictures"] = tuple(Picture(**picture) for picture in fields["pictures"])
            fields |= {name: tuple(fields[name]) for name in ("choices", "references")}
            own = f"{fields['id']}#{number}" if number else fields["id"]
            return Problem(**fields | {"id": own})

    def _mapped(self, start: int, count: int, kind: str) -> np.ndarray:
        return np.memmap(self._file, kind, "r", start, (count,)) if count else np.empty(0, kind)

    def _read(self, start: int, size: int) -> Any:
        return msgpack.unpackb(os.pread(self._descriptor, size, start))

    @contextmanager
    def _whole(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError, ArithmeticError, LookupError, TypeError) as error:
            raise DataError(f"{self._file}: expected problems and their index ({error}). {MADE_AGAIN}") from error


@dataclass(frozen=True, kw_only=True)
class MappedRow:
    """A question of a source as a problem, or why it is rejected."""

    outcome: Problem | Rejected  # a problem has the digests of its pictures
    number: int = 0  # of the question in its source, from 0
    unused: Sequence[str] = ()  # columns with a value that are not read
    changes: Sequence[str] = ()
    files: dict[str, Stamp] = field(default_factory=dict)  # picture files that were read, with their stamps from before
    further: int = 0  # questions of the same row that are not asked


class SpoolWriter:
    """Writes a spool into an empty file."""

    def __init__(self, content: BinaryIO, entries: BinaryIO) -> None:
        """entries: an empty temporary file, for what is in memory only column by column."""
        self._content, self._entries = content, entries
        self._waiting: dict[str, list[Any]] = {"rejected": [], "files": []}
        self._blocks: dict[str, list[tuple[int, int]]] = {"rejected": [], "files": []}
        self._noted: dict[str, None] = {}
        self._unused: dict[str, None] = {}
        self._changes: Counter[str] = Counter()
        self._kinds: set[str] = set()
        self._bare = self._further = 0
        self.accepted = 0

    def add(self, mapped: MappedRow) -> None:
        """Adds the next question."""
        for path, found in mapped.files.items():
            if path not in self._noted:
                self._noted[path] = None
                self._note("files", [path, *found])
        if len(self._noted) > _NOTES:
            self._noted.clear()
        self._unused |= dict.fromkeys(mapped.unused)
        if isinstance(problem := mapped.outcome, Rejected):
            self._note("rejected", vars(problem))
            return
        self._changes.update(mapped.changes)
        if len(self._kinds) < _NOTES:
            self._kinds.add(problem.kind)
        self._bare += not problem.pictures
        self._further += mapped.further
        seen = [picture.digest or picture.path for picture in problem.pictures]
        words = " ".join(re.findall(r"\w+", unicodedata.normalize("NFKC", problem.question).casefold()))
        content = msgpack.packb(vars(problem) | {"pictures": [vars(picture) for picture in problem.pictures]})
        digests = (int(problem.digest, 16), _digest([words, seen]), _digest(seen), _digest(problem.id))
        entry = (self._content.tell(), *digests, mapped.number + 1, len(content))
        self._entries.write(struct.pack("<5Q2I", *entry))
        self._content.write(content)
        self.accepted += 1

    def finish(
        self, order: Callable[[], np.ndarray], key: str, sources: Sequence[SourceCounts], remarks: Sequence[str] = ()
    ) -> None:
        """order: returns the places of questions, counted as they were added, in their seeded order; called when no
        column is in memory. key: everything that decides the content."""
        for name, waiting in self._waiting.items():
            self._write_block(name, waiting)
        changed, renamed = self._rename()
        kept = [name for name in _FIELDS if name != "id"]
        places = {name: self._append(changed.pop(name) if name in changed else self._column(name)) for name in kept}
        places["order"] = self._append(order())
        index: dict[str, Any] = {"key": key, "changes": dict(self._changes), "columns": places, "blocks": self._blocks}
        index |= {"remarks": [*remarks, *self._remarks(renamed)], "sources": [asdict(one) for one in sources]}
        place = self._content.tell()
        self._content.write(msgpack.packb(index) + f"{place:0{_PLACE}}".encode())

    def _column(self, name: str) -> np.ndarray:
        """Returns a column of the entries without having the others in memory."""
        found = np.empty(self.accepted, _ENTRY[name])
        self._entries.seek(0)
        for first in range(0, self.accepted, _AT_A_TIME):
            part = np.frombuffer(self._entries.read(_AT_A_TIME * _ENTRY.itemsize), _ENTRY)
            found[first : first + len(part)] = part[name]
        return found

    def _append(self, column: np.ndarray) -> tuple[int, int, str]:
        """Writes numbers; returns their place, how many there are, and their type."""
        start = self._content.tell()
        self._content.write(column.data)
        return start, len(column), column.dtype.str

    def _note(self, name: str, what: Any) -> None:
        self._waiting[name].append(what)
        if len(self._waiting[name]) == _NOTES:
            self._write_block(name, self._waiting[name])

    def _write_block(self, name: str, waiting: list[Any]) -> None:
        if waiting:
            content = msgpack.packb(waiting)
            self._blocks[name].append((self._content.tell(), len(content)))
            self._content.write(content)
            waiting.clear()

    def _rename(self) -> tuple[dict[str, np.ndarray], str]:
        """Finds questions whose id an earlier one has: their ids end with their numbers (``id#17``). Returns the
        columns that change, and a remark."""
        ids = self._column("id")
        ids.sort()
        if len(twice := ids[1:][ids[1:] == ids[:-1]]) == 0:
            return {"number": np.zeros(self.accepted, _ENTRY["number"])}, ""
        taken, ids = set(ids.tolist()), self._column("id")
        several = np.flatnonzero(np.isin(ids, twice))
        again = np.delete(several, np.unique(ids[several], return_index=True)[1])
        columns = {name: self._column(name) for name in ("number", "digest", "start", "size")}
        numbers = np.zeros_like(columns["number"])
        self._content.flush()
        with Path(self._content.name).open("rb") as written:
            for place in again:
                fields = msgpack.unpackb(os.pread(written.fileno(), columns["size"][place], columns["start"][place]))
                number = int(columns["number"][place])  # unique in its source, whose name begins the id
                while (digest := _digest(own := f"{fields['id']}#{number}")) in taken:
                    number += self.accepted
                taken.add(digest)
                numbers[place] = number
                pictures = tuple(Picture(**one) for one in fields["pictures"])
                problem = Problem(**fields | {"id": own, "pictures": pictures})
                columns["digest"][place] = int(problem.digest, 16)
        told = "questions have the id of an earlier one, which was made unique by their numbers"
        return {"number": numbers, "digest": columns["digest"]}, f"{len(again)} {told} ({own})"

    def _remarks(self, renamed: str) -> Iterator[str]:
        if self._bare:
            yield f"{self._bare} of {self.accepted} questions have no picture"
        if self._further:
            yield f"{self._further} further questions of the same dialogues are not asked (turns: all asks them)"
        if self._unused:
            yield f"columns that are not used: {cut(', '.join(self._unused), LONGEST)}"
        if renamed:
            yield renamed
        if (many := len(self._kinds)) > 50:
            told = "kinds of question, too many to compare one by one (accuracy is the mean over them)"
            yield f"{many} {told}: group them in the column kind, or leave it out"


def _digest(content: object) -> int:
    return int.from_bytes(hashlib.sha256(json.dumps(content).encode()).digest()[:8], "big")
