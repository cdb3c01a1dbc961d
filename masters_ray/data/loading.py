"""Loads a source in its seeded order: from its spool, or from its file into a new spool."""

import itertools
import json
import random
import re
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL

from masters_ray.config import DataSource
from masters_ray.data import sources
from masters_ray.data.mapping import MappedRow, Mapper
from masters_ray.data.pictures import PILLOW_MAX_PIXELS
from masters_ray.data.spool import FORMAT, THREADS, Problems, SpoolWriter, stamp
from masters_ray.data.texts import NO_SPECIAL, cut
from masters_ray.errors import DataError
from masters_ray.files import new_file
from masters_ray.progress import say
from masters_ray.records import Rejected

_UNDER_WAY = 128
"""Rows mapped at a time; each may hold pictures in memory."""
_SECONDS_BETWEEN_LINES = 10.0
_MANY_KINDS = 50
_REASONS_TOLD = 6
_LONGEST = 300
"""Most characters of a reason, or of all column names, in a message."""


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A source in its seeded order."""

    problems: Problems
    accepted: int
    """Usable rows of the source; ``problems`` holds the ones that were taken."""
    rejected: list[Rejected]
    changes: dict[str, int]
    """Change made while decoding, in words ("turned upright") → number of pictures, over the usable rows."""
    remarks: list[str]
    """Sentences about the source, such as columns that are not read."""


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
) -> Loaded:
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
            mapper = Mapper(source, max_pictures, max_pixels, special)
            kinds, note = _collect(source, mapper, writer, first)
            writer.finish(_seeded_order(kinds, seed, source.rows), key, note)
        problems = Problems(spool)
    rejected = [Rejected(**one) for one in problems.note["rejected"]]
    loaded = Loaded(**problems.note | {"problems": problems, "rejected": rejected})
    refuse_too_many(source, loaded, max_quarantined_share)
    return loaded


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


def _collect(
    source: DataSource, mapper: Mapper, writer: SpoolWriter, first: int | None
) -> tuple[list[str | None], dict[str, Any]]:
    """Writes the usable rows. Returns the kind of each row (None: not usable), and the other fields of ``Loaded`` as
    plain values."""
    kinds: list[str | None] = []
    rejected: list[Rejected] = []
    unused: dict[str, None] = {}
    changes: Counter[str] = Counter()
    renamed: list[str] = []
    said = time.monotonic()
    for mapped in _mapped(mapper, itertools.islice(sources.rows(source), first)):
        writer.looked_at(mapped.files)
        unused |= dict.fromkeys(mapped.unused)
        changes.update(mapped.changes)
        if isinstance(mapped.outcome, Rejected):
            rejected.append(mapped.outcome)
            kinds.append(None)
        else:
            if (id := writer.add(len(kinds), mapped.outcome, mapped.where)) != mapped.outcome.id:
                renamed.append(id)
            kinds.append(mapped.outcome.kind)
        if time.monotonic() - said > _SECONDS_BETWEEN_LINES:
            said = time.monotonic()
            say(f"{source.path}: {len(kinds)} rows are read, their pictures decoded")
    remarks = []
    if unused:
        remarks.append(f"columns that are not used: {cut(', '.join(unused), _LONGEST)}")
    if renamed:
        told = "rows have the id of an earlier one, which was made unique by their row numbers"
        remarks.append(f"{len(renamed)} {told} ({renamed[0]})")
    if (many := len({*kinds} - {None})) > _MANY_KINDS:
        told = "kinds of question, too many to compare one by one (accuracy is the mean over them)"
        remarks.append(f"{many} {told}: group them in the column kind, or leave it out")
    aside = [asdict(one) for one in rejected]
    return kinds, {"accepted": len(kinds) - len(aside), "rejected": aside, "changes": changes, "remarks": remarks}


def _mapped(mapper: Mapper, rows: Iterator[tuple[str, sources.Row]]) -> Iterator[MappedRow]:
    """Maps few rows at a time on several threads; yields them in their order."""
    with ThreadPoolExecutor(THREADS) as executor:
        while part := list(itertools.islice(rows, _UNDER_WAY)):
            yield from executor.map(mapper, part)


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
    return [f"{len(rows)} × {cut(rows[0].reason, _LONGEST)} ({rows[0].row})" for rows in those]


def refuse_too_many(source: DataSource, loaded: Loaded, allowed: float) -> None:
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
