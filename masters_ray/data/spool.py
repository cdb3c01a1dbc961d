"""The spool of a source: an SQLite file with its problems in their seeded order, each read when it is asked for.

Table ``problem`` has each usable row of the source, ``seeded`` the rows that were taken, in their order, ``file`` the
picture files that were read, ``note`` the key of what made the spool and the other findings about the source.
"""

import hashlib
import json
import os
import re
import sqlite3
import threading
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeAlias, overload
from urllib.parse import quote

import msgpack
import numpy as np

from masters_ray.errors import DataError, writing
from masters_ray.records import Picture, Problem

FORMAT = 5
"""Version of the file's format."""
_TABLES = """
PRAGMA page_size = 32768;
PRAGMA journal_mode = OFF;
PRAGMA synchronous = OFF;
CREATE TABLE problem (
    row INTEGER PRIMARY KEY, id TEXT UNIQUE, digest TEXT, asked TEXT, shown TEXT, content BLOB
);
CREATE TABLE seeded (position INTEGER PRIMARY KEY, row INTEGER, digest TEXT, asked TEXT, shown TEXT);
CREATE TABLE file (path TEXT PRIMARY KEY, size INTEGER, mtime_ns INTEGER) WITHOUT ROWID;
CREATE TABLE note (key TEXT, content TEXT);
"""
_DIGEST = 16
THREADS = min(32, 2 * len(os.sched_getaffinity(0)))
"""Threads that read files: more than CPUs, for network disks serve many reads."""

Stamp: TypeAlias = tuple[int, int]
"""A file's size in bytes and modification time in ns; (-1, -1): no readable file."""


class Problems(Sequence[Problem]):
    """The problems of a spool as a sequence; thread-safe."""

    def __init__(self, file: Path) -> None:
        """Raises DataError when the file is missing or not a whole spool."""
        self._file = file
        self._lock = threading.Lock()
        try:
            self._connection = _connected(file, "mode=ro&immutable=1")
            [(size,)] = self._ask("SELECT page_count * page_size FROM pragma_page_count, pragma_page_size")
            if size != file.stat().st_size:  # SQLite does not notice a truncated last page
                raise ValueError(f"{file.stat().st_size} bytes in place of {size}")
            [(self.key, note)] = self._ask("SELECT key, content FROM note")
            self.note: dict[str, Any] = json.loads(note)
            """The ``note`` of ``SpoolWriter.finish``."""
            self.digests = self.column("digest")
            """``Problem.digest`` of every problem, S16 [problems]."""
        except (OSError, sqlite3.Error, ValueError) as error:
            raise self._damaged(error) from error

    def __len__(self) -> int:
        return len(self.digests)

    @overload
    def __getitem__(self, where: int) -> Problem: ...

    @overload
    def __getitem__(self, where: slice) -> list[Problem]: ...

    def __getitem__(self, where: int | slice) -> Problem | list[Problem]:
        """Raises IndexError beyond the end, DataError when the file is damaged."""
        if isinstance(where, slice):
            return [self[position] for position in range(len(self))[where]]
        query = "SELECT content FROM seeded JOIN problem USING (row) WHERE position = ?"
        [(content,)] = self._ask(query, range(len(self))[where])
        fields = msgpack.unpackb(content)
        pictures = tuple(Picture(**picture) for picture in fields["pictures"])
        return Problem(**fields | {"choices": tuple(fields["choices"]), "pictures": pictures})

    def column(self, name: Literal["digest", "asked", "shown"]) -> np.ndarray:
        """Returns a digest per problem, S16 [problems]. digest: of the whole problem; shown: of its pictures' contents;
        asked: of its pictures and the question's words."""
        found = self._ask(f"SELECT {name} FROM seeded ORDER BY position")
        return np.array([digest for (digest,) in found], f"S{_DIGEST}")

    def digest(self, position: int) -> str:
        """Returns ``self[position].digest`` without reading the problem."""
        return bytes(self.digests[position]).decode()

    def pictures_are_as_noted(self) -> bool:
        """Whether every picture file still has the stamp that it had when the source was read."""
        noted = self._ask("SELECT path, size, mtime_ns FROM file")
        parts = [noted[first::THREADS] for first in range(THREADS)]
        with ThreadPoolExecutor(THREADS) as executor:
            return all(executor.map(lambda part: all(stamp(path) == (size, ns) for path, size, ns in part), parts))

    def _ask(self, query: str, *values: int) -> list[tuple[Any, ...]]:
        try:
            with self._lock:
                return self._connection.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise self._damaged(error) from error

    def _damaged(self, reason: object) -> DataError:
        return DataError(f"{self._file}: expected problems in an SQLite file ({reason}). Delete it to make it again.")


def opened(file: Path, key: Sequence[Any]) -> Problems | None:
    """Opens the spool in ``file``; returns None when it cannot be read or was made with another ``key``."""
    try:
        problems = Problems(file)
    except DataError:
        return None
    return problems if problems.key == json.dumps(key) else None


class SpoolWriter:
    """Writes the rows of a source in their order."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def add(self, row: int, problem: Problem, where: str) -> str:
        """Adds the problem of the row with that index; returns its id, made unique (``id#17``) by the row number in
        ``where``."""
        while self._connection.execute("SELECT 1 FROM problem WHERE id = ?", [problem.id]).fetchone():
            problem = replace(problem, id=f"{problem.id}#{where.rpartition(':')[2]}")
        seen = [picture.digest or picture.path for picture in problem.pictures]
        words = " ".join(re.findall(r"\w+", unicodedata.normalize("NFKC", problem.question).casefold()))
        content = msgpack.packb(vars(problem) | {"pictures": [vars(picture) for picture in problem.pictures]})
        values = (row, problem.id, problem.digest, _digest([words, seen]), _digest(seen), content)
        self._connection.execute("INSERT INTO problem VALUES (?, ?, ?, ?, ?, ?)", values)
        return problem.id

    def looked_at(self, files: Sequence[tuple[str, Stamp]]) -> None:
        """Records picture files and their stamps."""
        rows = [(path, *noted) for path, noted in files]
        self._connection.executemany("INSERT OR IGNORE INTO file VALUES (?, ?, ?)", rows)

    def finish(self, order: Sequence[int], key: Sequence[Any], note: Mapping[str, Any]) -> None:
        """order: rows in their seeded order; key: everything that decides the content; note: further values to keep."""
        self._connection.executemany(
            "INSERT INTO seeded SELECT ?, row, digest, asked, shown FROM problem WHERE row = ?", enumerate(order)
        )
        self._connection.execute("INSERT INTO note VALUES (?, ?)", [json.dumps(key), json.dumps(note)])


@contextmanager
def new_spool(file: Path) -> Iterator[SpoolWriter]:
    """Yields the writer of a spool, which replaces ``file`` when the block ends without an error. Raises DataError when
    it cannot be written."""
    unfinished = file.with_name(file.name + ".tmp")
    with writing(file, DataError, sqlite3.Error):
        file.parent.mkdir(parents=True, exist_ok=True)
        unfinished.unlink(missing_ok=True)
        try:
            # Without SQLite's locks, which network disks may lack: no other process knows the file yet.
            with closing(_connected(unfinished, "nolock=1")) as connection:
                connection.executescript(_TABLES)
                yield SpoolWriter(connection)
                connection.commit()
            with unfinished.open("rb") as content:
                os.fsync(content.fileno())
            unfinished.replace(file)
        finally:
            unfinished.unlink(missing_ok=True)


def stamp(path: str) -> Stamp:
    with suppress(OSError, ValueError):
        found = Path(path).stat()
        if os.access(path, os.R_OK):
            return found.st_size, found.st_mtime_ns
    return -1, -1


def _connected(file: Path, options: str) -> sqlite3.Connection:
    name = quote(os.fsencode(file.absolute()))
    return sqlite3.connect(f"file:{name}?{options}", uri=True, check_same_thread=False)


def _digest(content: object) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:_DIGEST]
