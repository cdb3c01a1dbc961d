"""Maps rows of a source to problems, and loads these in their seeded order: into a spool, or from it."""

import itertools
import json
import random
import re
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, get_args

import numpy as np
import PIL

from masters_ray.config import DataSource
from masters_ray.data import sources
from masters_ray.data.labels import Reading, choices_of, readings, right_choice
from masters_ray.data.pictures import PILLOW_MAX_PIXELS, Stamp, check, named, stamp
from masters_ray.data.spool import FORMAT, THREADS, MappedRow, Problems, SpoolWriter
from masters_ray.data.texts import LONGEST, NO_SPECIAL, BadRowError, as_text, check_texts, cut
from masters_ray.errors import DataError
from masters_ray.files import new_file
from masters_ray.progress import say
from masters_ray.records import Picture, Problem, Rejected

_USED = ("id", "question", "answer", "image", "choices", "kind")
_LAYOUTS = {
    "conversations": "LLaVA's layout (conversations)",
    "messages": "the layout of OpenAI and ms-swift (messages)",
    "texts": "the layout of The Cauldron (texts with user and assistant)",
    "qa": "several questions in one row (qa)",
}
_CHOICES = re.compile(r"(?i)(options?|candidates|multiple_choices|(option|choice)s?_?[a-f0-9]?|[ab])")
"""Names of columns that seem to hold choices."""


class Mapper:
    """Maps a source's rows to problems; thread-safe."""

    def __init__(self, source: DataSource, max_pictures: int, max_pixels: int, special: str) -> None:
        self._folder = Path(source.path).parent
        self._max_pictures, self._max_pixels, self._special = max_pictures, max_pixels, special
        self._usual = _usual_reading(source)
        # Questions about the same picture are mostly close together.
        self._of_file = lru_cache(4096)(lambda path, _: check(Picture(path=path), max_pixels))

    def __call__(self, read: tuple[str, sources.Row]) -> MappedRow:
        """read: an item of ``sources.rows``."""
        where, row = read
        changes: list[str] = []
        files: dict[str, Stamp] = {}
        outcome: Problem | Rejected
        try:
            problem = self._problem(row, where)
            files = {one.path: stamp(one.path) for one in problem.pictures if one.path is not None}
            checked = [
                check(one, self._max_pixels) if one.path is None else self._of_file(one.path, files[one.path])
                for one in problem.pictures
            ]
            outcome = replace(problem, pictures=tuple(picture for picture, _ in checked))
            changes = [change for _, made in checked for change in made]
        except BadRowError as error:
            outcome = Rejected(row=where, reason=str(error), kind=error.kind)
        columns = row if isinstance(row, dict) else {}
        unused = [key for key, value in columns.items() if value is not None and key not in _USED]
        return MappedRow(where=where, outcome=outcome, unused=unused, changes=changes, files=files)

    def _problem(self, row: sources.Row, where: str) -> Problem:
        """Returns the row's problem without reading its pictures. Raises BadRowError."""
        if isinstance(row, BadRowError):
            raise row
        _check_columns(row)
        question, label = as_text(row["question"], "question"), as_text(row["answer"], "answer")
        if not question or not label:
            raise BadRowError(f"empty {'answer' if question else 'question'}")
        images = row["image"] if isinstance(row["image"], list) else [row["image"]]
        choices = choices_of(row.get("choices"))
        problem = Problem(
            id=_name(row.get("id"), "id") or where,
            question=question,
            label=right_choice(label, choices, self._usual),
            pictures=tuple(named(image, self._folder) for image in images),
            choices=tuple(choices.values()),
            kind=_name(row.get("kind"), "kind") or "all",
        )
        if len(images) > self._max_pictures:
            raise BadRowError(f"{len(images)} pictures, expected at most engine.max_pictures = {self._max_pictures}")
        check_texts(problem, self._special)
        return problem


def _check_columns(row: Mapping[str, Any]) -> None:
    """Raises BadRowError when a column is missing, or choices seem to be in columns of another name, which would make
    the row a free question."""
    given = [str(key) for key, value in row.items() if value is not None]
    if missing := [key for key in ("question", "answer", "image") if key not in given]:
        layout = next((f"holds {name}" for key, name in _LAYOUTS.items() if key in given), None)
        found = layout or f"no {', '.join(missing)}, only {cut(', '.join(given)) or 'nothing'}"
        raise BadRowError(f"{found}; {sources.ONE_A_ROW}: rename or convert what there is")
    like = [key for key in given if _CHOICES.fullmatch(key) and row[key] not in ([], {}, "", "[]")]
    if like and not row.get("choices"):
        raise BadRowError(f"{cut(', '.join(like))} may be meant as choices: rename it, or write them as one list")


def _usual_reading(source: DataSource) -> Reading:
    """Returns how most labels of the first 500 rows name their choices; text wins a tie. It decides for ambiguous
    labels, such as a number among choices that are numbers."""
    counts: Counter[Reading] = Counter()
    for _, row in itertools.islice(sources.rows(source), 500):
        if isinstance(row, dict):
            try:
                label, choices = as_text(row.get("answer"), "answer"), choices_of(row.get("choices"))
            except BadRowError:
                continue  # reported when the row is mapped
            counts.update(list(readings(label, choices)))
    return max(get_args(Reading), key=lambda one: counts[one])


def _name(value: Any, key: str) -> str | None:
    if value is None or value != value:  # NaN stands for a missing value in a column of numbers
        return None
    text = as_text(str(value) if isinstance(value, bool) else value, key)
    if len(text) > 500:
        raise BadRowError(f"{key}: expected at most 500 characters, found {len(text)}")
    return text or None


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
    kinds balanced. Writes them to ``spool``, or opens it when the same file, pictures and arguments made it. special: a
    regular expression; rows with a match in a text are set aside. Raises DataError when the file cannot be read, the
    spool cannot be written, or ``refuse_too_many`` does."""
    file = sources.origin(source)
    made_by = [FORMAT, PIL.__version__, vars(source), str(file.absolute()), stamp(str(file))]
    key = json.dumps([*made_by, seed, max_pictures, max_pixels, special, first])
    if (problems := _kept(spool, key)) is None:
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
    """Maps few rows at a time, which may hold pictures, on several threads; writes them in their order."""
    rows, said = itertools.islice(sources.rows(source), first), time.monotonic()
    with ThreadPoolExecutor(THREADS) as executor:
        while part := list(itertools.islice(rows, 128)):
            for mapped in executor.map(mapper, part):
                writer.add(mapped)
            if time.monotonic() - said > 10:
                said = time.monotonic()
                say(f"{source.path}: {len(writer.kinds)} rows are read, their pictures decoded")


def _seeded_order(kinds: Sequence[str | None], seed: int, wanted: int | None) -> list[int]:
    """Returns the usable rows shuffled by ``seed``; takes ``wanted`` of them from the kinds in turn while they last.
    kinds: kind of each row; None: not usable."""
    # Unusable rows take part, so that mending one does not change the order of the others.
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
    those = sorted(alike.values(), key=len, reverse=True)[:6]
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
