"""A source on disk, ready to use: its problems in their seeded order, read a few at a time.

An Arrow IPC file. Its schema's metadata say what it was made of (the key), how its batches are cut, and which rows were
set aside. The file is read, not mapped into memory: pages of a mapped file would count as the process's memory.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
import unicodedata
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import pyarrow as pa

from masters_ray.data.pixels import Change
from masters_ray.errors import DataError
from masters_ray.records import Picture, Problem, Rejected

FORMAT = 3
"""Counts up when the same source would be written in another way."""
_SPOOL = b"spool"
_BATCHES_KEPT = 4
_DIGEST = 16


def _field(name: str, kind: pa.DataType, *, nullable: bool = False) -> pa.Field:
    return pa.field(name, kind, nullable=nullable)


_PICTURE = pa.struct(
    [
        _field("path", pa.string(), nullable=True),
        _field("data", pa.large_binary(), nullable=True),
        _field("digest", pa.string(), nullable=True),
    ]
)
SCHEMA = pa.schema(
    [
        _field("id", pa.string()),
        _field("question", pa.string()),
        _field("label", pa.string()),
        _field("kind", pa.string()),
        _field("choices", pa.list_(_field("element", pa.string()))),
        _field("pictures", pa.list_(_field("element", _PICTURE))),
        _field("digest", pa.binary(_DIGEST)),
        _field("asked", pa.binary(_DIGEST)),
        _field("shown", pa.binary(_DIGEST)),
    ]
)


@dataclass(frozen=True, kw_only=True)
class Note:
    """What a spool says of itself."""

    key: dict[str, Any]
    """All that decides its content, as plain values."""
    rows: int
    rows_per_batch: int
    """Of every batch but the last."""
    accepted: int
    """Rows of the source that can be used; ``rows`` of them were taken."""
    rejected: list[Rejected]
    changes: dict[Change, int]
    """Pictures of the accepted rows, by what decoding them takes beside."""
    unused: dict[str, int]
    """Column that is not read → rows that have a value in it."""
    remarks: list[str]
    """What a person should know of the source."""

    def as_metadata(self) -> dict[bytes, str]:
        """The same for a schema."""
        return {_SPOOL: json.dumps(asdict(self))}

    @classmethod
    def of(cls, metadata: Mapping[bytes, bytes]) -> Note:
        """The inverse. Raises KeyError, TypeError or ValueError when the metadata are no spool's."""
        content = json.loads(metadata[_SPOOL])
        return cls(**content | {"rejected": [Rejected(**one) for one in content["rejected"]]})


class Problems(Sequence[Problem]):
    """The problems of a spool, read when they are asked for; may be used by several threads at once.

    Neighbours come cheaply: the batches that were read last are kept.
    """

    def __init__(self, file: Path) -> None:
        """Raises DataError when the file is missing or not a whole spool."""
        self._file = file
        self._lock = threading.Lock()
        self._batches: OrderedDict[int, pa.RecordBatch] = OrderedDict()
        self._digests: dict[str, np.ndarray] = {}
        try:
            self._reader = pa.ipc.open_file(pa.OSFile(str(file)))
            self.note = Note.of(self._reader.schema.metadata or {})
        except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
            raise self._damaged(error) from error
        batches = -(-self.note.rows // self.note.rows_per_batch)
        if self._reader.num_record_batches != batches:
            raise self._damaged(f"{self._reader.num_record_batches} batches in place of {batches}")

    def __len__(self) -> int:
        return self.note.rows

    @overload
    def __getitem__(self, where: int) -> Problem: ...

    @overload
    def __getitem__(self, where: slice) -> list[Problem]: ...

    def __getitem__(self, where: int | slice) -> Problem | list[Problem]:
        """One problem, or a list of them. Raises IndexError beyond the end, DataError when the file is damaged."""
        if isinstance(where, slice):
            start, stop, step = where.indices(len(self))
            if step == 1:
                return self._between(start, stop)
            return [self[position] for position in range(start, stop, step)]
        position = self._position(where)
        return self._between(position, position + 1)[0]

    def __iter__(self) -> Iterator[Problem]:
        for start in range(0, len(self), self.note.rows_per_batch):
            yield from self[start : start + self.note.rows_per_batch]

    @property
    def digests(self) -> np.ndarray:
        """``Problem.digest`` of every problem, S16 [problems]; read once, without the problems themselves."""
        return self.column("digest")

    def column(self, name: Literal["digest", "asked", "shown"]) -> np.ndarray:
        """The digests of every problem, of what its pictures show, or of that and what is asked of them; S16
        [problems], read once."""
        with self._lock:
            if name not in self._digests:
                self._digests[name] = self._read_digests(name)
            return self._digests[name]

    def digest(self, position: int) -> str:
        """``self[position].digest``, without reading the problem."""
        return bytes(self.digests[self._position(position)]).decode()

    def _position(self, where: int) -> int:
        if not -len(self) <= where < len(self):
            raise IndexError(f"position {where} of {len(self)} problems")
        return where % len(self)

    def _between(self, start: int, stop: int) -> list[Problem]:
        found: list[Problem] = []
        size = self.note.rows_per_batch
        while start < stop:
            first = start % size
            part = self._batch(start // size).slice(first, min(size - first, stop - start))
            found += [_problem(row) for row in part.to_pylist()]
            start += len(part)
        return found

    def _batch(self, number: int) -> pa.RecordBatch:
        with self._lock:
            if number in self._batches:
                self._batches.move_to_end(number)
                return self._batches[number]
            try:
                batch = self._reader.get_batch(number)
            except (OSError, pa.ArrowException) as error:
                raise self._damaged(error) from error
            size, rows = self.note.rows_per_batch, self.note.rows
            if len(batch) != min(size, rows - number * size):
                raise self._damaged(f"batch {number} has {len(batch)} rows")
            self._batches[number] = batch
            if len(self._batches) > _BATCHES_KEPT:
                self._batches.popitem(last=False)
            return batch

    def _read_digests(self, name: str) -> np.ndarray:
        options = pa.ipc.IpcReadOptions(included_fields=[SCHEMA.get_field_index(name)])
        found = np.empty(len(self), f"S{_DIGEST}")
        try:
            with pa.OSFile(str(self._file)) as content:
                reader = pa.ipc.open_file(content, options=options)
                for number in range(reader.num_record_batches):
                    start = number * self.note.rows_per_batch
                    batch = reader.get_batch(number)
                    column = batch.column(0)
                    found[start : start + len(batch)] = np.frombuffer(column.buffers()[1], found.dtype, len(batch))
        except (OSError, pa.ArrowException) as error:
            raise self._damaged(error) from error
        return found

    def _damaged(self, reason: object) -> DataError:
        return DataError(f"{self._file}: expected problems in an Arrow file ({reason}). Delete it to make it again.")


def opened(file: Path, key: Mapping[str, Any]) -> Problems | None:
    """The spool in ``file`` if it was made of ``key`` and can be read."""
    if not file.is_file():
        return None
    try:
        problems = Problems(file)
    except DataError:
        return None  # it is made again
    return problems if problems.note.key == json.loads(json.dumps(key)) else None


def batch(problems: Sequence[Problem]) -> pa.RecordBatch:
    """Problems as rows of SCHEMA."""
    return pa.RecordBatch.from_pylist([_row(problem) for problem in problems], schema=SCHEMA)


def _row(problem: Problem) -> dict[str, Any]:
    shown = [picture.digest or picture.path for picture in problem.pictures]
    return {
        "id": problem.id,
        "question": problem.question,
        "label": problem.label,
        "kind": problem.kind,
        "choices": problem.choices,
        "pictures": [vars(picture) for picture in problem.pictures],
        "digest": problem.digest.encode(),
        "asked": _digest(
            [" ".join(re.findall(r"\w+", unicodedata.normalize("NFKC", problem.question).casefold())), shown]
        ),
        "shown": _digest(shown),
    }


def _digest(content: object) -> bytes:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:_DIGEST].encode()


def _problem(row: Mapping[str, Any]) -> Problem:
    return Problem(
        id=row["id"],
        question=row["question"],
        label=row["label"],
        kind=row["kind"],
        choices=tuple(row["choices"]),
        pictures=tuple(Picture(**one) for one in row["pictures"]),
    )
