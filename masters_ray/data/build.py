"""Making a spool in two passes, neither of which holds the problems in memory.

1. The source's rows are looked at one by one; those that can be used go into a temporary file as they come.
2. Their seeded order is drawn, and the rows are copied in that order into the spool.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import random
import time
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from masters_ray.config import DataSource
from masters_ray.data import files, sources
from masters_ray.data.examine import Examiner, in_order
from masters_ray.data.pixels import Change
from masters_ray.data.scalars import cut
from masters_ray.data.spool import SCHEMA, Note, batch
from masters_ray.errors import DataError, writing
from masters_ray.progress import say
from masters_ray.records import Problem, Rejected

_ROWS = 256
"""Most rows of a spool's batch."""
_BATCH_BYTES = 4 << 20
"""About what a batch holds at most: fewer rows where pictures are embedded."""
_SECONDS_BETWEEN_LINES = 10.0
_UNSORTED_ROWS = 1024
"""Most rows of the temporary file's batches, each of which is visited once for every stretch that is copied."""
_COPIED_BYTES = 32 << 20
"""About what is copied at a time, of at most so many rows:"""
_COPIED_ROWS = 1 << 16


@dataclass(kw_only=True)
class Collected:
    """The rows of a source that can be used, in a temporary file, and what was set aside."""

    file: Path
    kinds: array[int] = field(default_factory=lambda: array("I"))
    """Of each row: which of ``names``."""
    names: dict[str, int] = field(default_factory=dict)
    """Kind → number."""
    starts: list[int] = field(default_factory=list)
    """The first row of each of the file's batches."""
    read: int = 0
    """Rows of the source."""
    numbers: array[int] = field(default_factory=lambda: array("Q"))
    """Of each row: its number in the source, from 0."""
    changes: Counter[Change] = field(default_factory=Counter)
    """Pictures of the rows, by what decoding them takes."""
    size: int = 0
    """Bytes of all rows."""
    rejected: list[Rejected] = field(default_factory=list)
    unused: dict[str, int] = field(default_factory=dict)
    """Column that is not read → rows that have a value in it."""
    repeated: list[str] = field(default_factory=list)
    """Ids that stand in an earlier row, as they were made unique."""

    def __len__(self) -> int:
        return len(self.kinds)


def collect(
    source: DataSource,
    file: Path,
    pictures: Path,
    max_pictures: int,
    max_pixels: int,
    special: str,
    first: int | None = None,
) -> Collected:
    """Write the rows that can be used to ``file``, in the order of the source, and the files of pictures that were
    looked at to ``pictures`` (``files``); first: of so many rows.

    Raises DataError when the source cannot be read or a file cannot be written.
    """
    found = Collected(file=file)
    reader = sources.Reader(source)
    examine = Examiner(reader, max_pictures, max_pixels, special)
    notes, seen = files.Notes(), set[bytes]()
    said = time.monotonic()
    with _new_file(file, SCHEMA) as writer, _new_file(pictures, files.SCHEMA) as noted:
        waiting: list[Problem] = []
        weight = 0
        for row in in_order(examine, itertools.islice(sources.rows(source), first), files.threads()):
            found.read += 1
            if time.monotonic() - said > _SECONDS_BETWEEN_LINES:
                said = time.monotonic()
                say(f"{source.path}: {found.read} rows are read, their pictures decoded")
            if notes.add(row.files) >= _UNSORTED_ROWS:
                noted.write_batch(notes.batch())
            if isinstance(row.outcome, Rejected):
                found.rejected.append(row.outcome)
                continue
            outcome = _with_an_id_of_its_own(row.outcome, row.where, seen, found.repeated)
            found.numbers.append(found.read - 1)
            found.changes.update(row.changes)
            waiting.append(outcome)
            weight += sum(len(picture.data or b"") for picture in outcome.pictures)
            if len(waiting) == _UNSORTED_ROWS or weight >= _BATCH_BYTES:
                _append(writer, waiting, found)
                waiting, weight = [], 0
        if waiting:
            _append(writer, waiting, found)
        noted.write_batch(notes.batch())
    found.unused = {cut(column): count for column, count in reader.unused.items()}
    return found


def seeded_order(collected: Collected, seed: int, rows: int | None) -> Sequence[int]:
    """Rows of the temporary file as a spool has them: shuffled by ``seed``, of which ``rows`` are taken.

    They are taken from the kinds in turn while they last, and stay in their order; all when rows is None. Rows of the
    source that cannot be used take part in the shuffle: the others keep their order when one is mended.
    """
    shuffled = array("Q", range(collected.read))
    random.Random(seed).shuffle(shuffled)
    places = np.full(collected.read, -1)
    places[collected.numbers] = np.arange(len(collected))
    order = places[shuffled]
    order = order[order >= 0]
    if rows is None or rows >= len(order):
        return array("Q", order.tolist())
    left = _quotas(collected, rows)
    taken = array("Q")
    for row in order.tolist():
        kind = collected.kinds[row]
        if left[kind]:
            left[kind] -= 1
            taken.append(row)
    return taken


def rows_per_batch(collected: Collected) -> int:
    """How many rows of a spool are read at a time."""
    return max(1, min(_ROWS, _BATCH_BYTES * len(collected) // max(1, collected.size)))


def copy(collected: Collected, order: Sequence[int], file: Path, note: Note) -> None:
    """Write the rows of the temporary file in their order to ``file`` and flush it. Raises DataError."""
    size = note.rows_per_batch
    wanted = min(_COPIED_ROWS, _COPIED_BYTES * len(collected) // max(1, collected.size))
    stretch = max(1, wanted // size) * size
    with pa.memory_map(str(collected.file)) as mapped, _new_file(file, SCHEMA.with_metadata(note.as_metadata())) as to:
        reader = pa.ipc.open_file(mapped)
        starts = np.array(collected.starts)
        for first in range(0, len(order), stretch):
            rows = _gathered(reader, starts, np.array(order[first : first + stretch], np.int64))
            for start in range(0, len(rows), size):
                to.write_batch(rows.slice(start, size))
    with writing(file, DataError), file.open("rb") as content:
        os.fsync(content.fileno())


def _with_an_id_of_its_own(problem: Problem, where: str, seen: set[bytes], repeated: list[str]) -> Problem:
    """The problem; with the number of its row behind its id when an earlier row has the same, as where it names a
    picture."""
    id = problem.id
    while (name := hashlib.blake2b(id.encode(), digest_size=8).digest()) in seen:
        id = f"{id}#{where.rpartition(':')[2]}"
    seen.add(name)
    if id == problem.id:
        return problem
    repeated.append(id)
    return replace(problem, id=id)


def _append(writer: _Writer, problems: Sequence[Problem], found: Collected) -> None:
    content = batch(problems)
    writer.write_batch(content)
    found.starts.append(len(found))
    found.size += content.nbytes
    found.kinds.extend(found.names.setdefault(problem.kind, len(found.names)) for problem in problems)


def _quotas(collected: Collected, rows: int) -> list[int]:
    """How many rows of each kind are taken, by the kind's number, when kinds take turns by their names."""
    left = Counter(collected.kinds)
    quotas = [0] * len(collected.names)
    turn = [collected.names[name] for name in sorted(collected.names)]
    while rows:
        rounds = min(rows // len(turn), min(left[kind] for kind in turn))
        taking = turn if rounds else turn[:rows]
        for kind in taking:
            quotas[kind] += rounds or 1
            left[kind] -= rounds or 1
        rows -= len(taking) * (rounds or 1)
        turn = [kind for kind in turn if left[kind]]
    return quotas


def _gathered(reader: pa.RecordBatchFileReader, starts: np.ndarray, rows: np.ndarray) -> pa.RecordBatch:
    """Those rows in that order; every batch is visited once."""
    ascending = np.argsort(rows)
    numbers = np.searchsorted(starts, rows[ascending], side="right") - 1
    cuts = np.flatnonzero(np.diff(numbers)) + 1
    pieces = [
        reader.get_batch(int(number)).take(pa.array(part - starts[number]))
        for number, part in zip(numbers[[0, *cuts]], np.split(rows[ascending], cuts), strict=True)
    ]
    places = np.empty_like(ascending)
    places[ascending] = np.arange(len(rows))
    return pa.concat_batches(pieces).take(pa.array(places))


class _Writer:
    """Batches into an Arrow file."""

    def __init__(self, file: Path, writer: pa.RecordBatchFileWriter) -> None:
        self._file, self._writer = file, writer

    def write_batch(self, content: pa.RecordBatch) -> None:
        with writing(self._file, DataError):
            self._writer.write_batch(content)


@contextmanager
def _new_file(file: Path, schema: pa.Schema) -> Iterator[_Writer]:
    with writing(file, DataError):
        sink = pa.OSFile(str(file), "wb")
    with sink:
        writer = pa.ipc.new_file(sink, schema)
        yield _Writer(file, writer)
        with writing(file, DataError):
            writer.close()
