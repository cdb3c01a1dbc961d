"""Loads a source in its seeded order: from its spool, or from its file into a new spool."""

import itertools
import json
import random
import re
import time
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL

from masters_ray.config import DataSource
from masters_ray.data import sources
from masters_ray.data.mapping import Mapper
from masters_ray.data.pictures import PILLOW_MAX_PIXELS, stamp
from masters_ray.data.spool import FORMAT, THREADS, Problems, SpoolWriter
from masters_ray.data.texts import LONGEST, NO_SPECIAL, cut
from masters_ray.errors import DataError
from masters_ray.files import new_file
from masters_ray.progress import say
from masters_ray.records import Rejected

_UNDER_WAY = 128
"""Rows mapped at a time; each may hold pictures in memory."""
_SECONDS_BETWEEN_LINES = 10.0
_REASONS_TOLD = 6


def load(
    source: DataSource,
    seed: int,
    max_quarantined_share: float,
    max_pictures: int = 1,
    *,
    max_pixels: int = PILLOW_MAX_PIXELS,
    special: str = NO_SPECIAL,
    spool: Path,
    first: int | None = None,
) -> Problems:
    """Reads the ``first`` rows of a source (None: all), shuffles them by ``seed``, takes ``source.rows`` of them with
    kinds balanced. Writes them to ``spool``, or opens it when the same file, pictures and arguments made it.

    Sets a row aside when it is malformed, a picture cannot be decoded or has more than ``max_pixels`` pixels, or the
    regular expression ``special`` finds a tokenizer's special token in a text. Raises DataError when the file cannot be
    read, the spool cannot be written, or ``refuse_too_many`` does.
    """
    file = sources.origin(source)
    made_by = [FORMAT, PIL.__version__, vars(source), str(file.absolute()), stamp(str(file))]
    key = json.dumps([*made_by, seed, max_pictures, max_pixels, special, first])
    problems = _kept(spool, key)
    if problems is None:
        with new_file(spool, DataError) as content:
            writer = SpoolWriter(content)
            _read(source, Mapper(source, max_pictures, max_pixels, special), writer, first)
            writer.finish(_seeded_order(writer.kinds, seed, source.rows), key)
        problems = Problems(spool)
    refuse_too_many(source, problems, max_quarantined_share)
    return problems


def _kept(spool: Path, key: str) -> Problems | None:
    try:
        problems = Problems(spool)
    except DataError:
        return None
    if problems.key != key:
        return None
    if not problems.pictures_are_as_noted():
        say(f"{spool}: pictures have changed since its rows were read; they are read again")
        return None
    return problems


def _read(source: DataSource, mapper: Mapper, writer: SpoolWriter, first: int | None) -> None:
    """Maps few rows at a time on several threads; writes them in their order."""
    rows, said = itertools.islice(sources.rows(source), first), time.monotonic()
    with ThreadPoolExecutor(THREADS) as executor:
        while part := list(itertools.islice(rows, _UNDER_WAY)):
            for mapped in executor.map(mapper, part):
                writer.add(mapped)
            if time.monotonic() - said > _SECONDS_BETWEEN_LINES:
                said = time.monotonic()
                say(f"{source.path}: {len(writer.kinds)} rows are read, their pictures decoded")


def _seeded_order(kinds: Sequence[str | None], seed: int, wanted: int | None) -> list[int]:
    """Returns the usable rows shuffled by ``seed``; takes ``wanted`` of them from the kinds in turn while they last.

    kinds: kind of each row; None: not usable. Unusable rows take part in the shuffle, so that mending one does not
    change the order of the others.
    """
    shuffled = list(range(len(kinds)))
    random.Random(seed).shuffle(shuffled)
    order = [row for row in shuffled if kinds[row] is not None]
    numbers: dict[str | None, itertools.count[int]] = defaultdict(itertools.count)
    turns = sorted((next(numbers[kinds[row]]), kinds[row] or "", place) for place, row in enumerate(order))
    return [order[place] for place in sorted(place for *_, place in turns[:wanted])]


def reasons(rejected: Sequence[Rejected]) -> list[str]:
    """Returns the most frequent reasons, each with its number of rows and its first row. Reasons that differ only in
    names and numbers count as one."""
    alike: dict[str, list[Rejected]] = defaultdict(list)
    for one in rejected:
        alike[re.sub(r"/\S+|'[^']*'|\d+", "…", one.reason)].append(one)
    those = sorted(alike.values(), key=len, reverse=True)[:_REASONS_TOLD]
    return [f"{len(rows)} × {cut(rows[0].reason, LONGEST)} ({rows[0].row})" for rows in those]


def refuse_too_many(source: DataSource, loaded: Problems, allowed: float) -> None:
    """Raises DataError when more than the fraction ``allowed`` of the rows was set aside, or all, or there are none."""
    aside, total = len(loaded.rejected), loaded.accepted + len(loaded.rejected)
    if loaded.accepted and aside / total <= allowed:
        return
    if not total:
        raise DataError(f"{source.path}: expected rows with question, answer and image, found none.")
    lines = "\n  ".join([*reasons(loaded.rejected), *loaded.remarks])
    raise DataError(
        f"{source.path}: {aside} of {total} rows cannot be used; data.max_quarantined_share allows {allowed:g} (never "
        f"all). The most frequent reasons:\n  {lines}\nMend the rows, or raise data.max_quarantined_share."
    )


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """Held-out questions that overlap with the training data: accuracy on them may measure memory."""

    same_question: int
    """Held-out questions that are training questions too: same words (case and punctuation aside) and pictures."""
    same_picture: int
    """Other held-out questions whose pictures occur in training."""
    examples: list[str]
    """Ids of the first three ``same_question``."""


def overlap(train: Problems, held_out: Problems) -> Overlap:
    """Compares two sources by digests of words and of pictures' contents."""
    asked, shown = (np.isin(held_out.rows[name], train.rows[name]) for name in ("asked", "shown"))
    return Overlap(
        same_question=int(asked.sum()),
        same_picture=int((shown & ~asked).sum()),
        examples=[held_out[int(position)].id for position in np.flatnonzero(asked)[:3]],
    )
