"""Loads the problems of a mixture of sources in their seeded order: into a spool, or from it."""

import itertools
import json
import re
import tempfile
import time
from array import array
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import PIL

from masters_ray.config import DataSource
from masters_ray.data import mixture, places
from masters_ray.data.labels import choices_of, label_of, right_choice
from masters_ray.data.layouts import Draft, RowLayout, placed
from masters_ray.data.pictures import PILLOW_MAX_PIXELS, Stamp, check, named, stamp
from masters_ray.data.spool import FORMAT, THREADS, MappedRow, Problems, SourceCounts, SpoolWriter
from masters_ray.data.tables import Row, Table
from masters_ray.data.texts import LONGEST, NO_SPECIAL, BadRowError, as_text, bare, check_texts, cut, shown
from masters_ray.errors import DataError
from masters_ray.files import new_file
from masters_ray.progress import say, warn
from masters_ray.records import Picture, Problem, Rejected

Checked: TypeAlias = tuple[Picture, set[str]]  # a picture with its digest, and the changes made while decoding
_HOPELESS = 1000  # questions of a source after which reading ends if none of them can be used


class SourceReader:
    """Reads a source's questions, which are numbered from 0: rows, or with ``turns: all`` the turns of its rows."""

    def __init__(self, source: DataSource, max_pictures: int, max_pixels: int, special: str) -> None:
        """Raises DataError when there is nothing to read."""
        self.source, self.tables = source, places.tables(source)
        self._max_pictures, self._max_pixels, self._special = max_pictures, max_pixels, special
        self._layout = RowLayout(source)
        # Questions about the same picture are mostly close together.
        self._of_file = lru_cache(1024)(lambda path, _: check(Picture(path=path), max_pixels))

    @property
    def name(self) -> str:
        return self.source.name or self.source.path

    @cached_property
    def size(self) -> int:
        """Number of questions."""
        return sum(self._sizes)

    @cached_property
    def _sizes(self) -> list[int]:
        """Number of questions in each table."""
        return [int(turns.sum()) for turns in self._turns] if self._turns else [one.count() for one in self.tables]

    @cached_property
    def _turns(self) -> list[np.ndarray]:
        """Each table's number of questions in each row, with ``turns: all``; otherwise empty."""
        key = self.source.fields.turns
        if key is None or self.source.turns == "first":
            return []
        return [np.fromiter(map(self._layout.count, table.column(key)), np.uint16) for table in self.tables]

    def kinds(self) -> np.ndarray | None:
        """Returns each question's kind as a number that sorts like its name; None: all are of one kind."""
        numbers: dict[str, int] = {}
        found = []
        for table in self.tables:
            keys = [key.removesuffix("?") for key in self.source.fields.kind]
            rows = table.column(keys[0]) if len(keys) == 1 else (row for _, row in table.rows())
            own = (numbers.setdefault(self._kind_of(row), len(numbers)) for row in rows)
            found.append(np.fromiter(own, np.uint32))
        if len(numbers) <= 1:
            return None
        ranks = np.argsort(np.argsort(np.array(list(numbers)), kind="stable")).astype(np.uint32)
        of_rows = ranks[np.concatenate(found)]
        return np.repeat(of_rows, np.concatenate(self._turns)) if self._turns else of_rows

    def read(self, chosen: np.ndarray | None = None) -> Iterator[MappedRow]:
        """Yields questions in their order. chosen: their numbers, ascending; None: all."""
        first = 0
        for place, table in enumerate(self.tables):
            if chosen is None:
                for _, mapped in self._mapped(table, None):
                    yield from (replace(one, number=first + turn) for turn, one in enumerate(mapped))
                    first += len(mapped)
                continue
            own = chosen[(chosen >= first) & (chosen < first + self._sizes[place])] - first
            ends = np.cumsum(self._turns[place], dtype=np.int64) if self._turns else None
            rows = own if ends is None else np.unique(np.searchsorted(ends, own, "right"))
            for row, mapped in self._mapped(table, rows) if len(rows) else ():
                before = row if ends is None else int(ends[row - 1]) if row else 0
                for turn, one in enumerate(mapped):
                    if ends is None or own[np.searchsorted(own, before + turn) % len(own)] == before + turn:
                        yield replace(one, number=first + before + turn)
            first += self._sizes[place]

    def forget(self) -> None:
        """Frees what is remembered of pictures."""
        self._of_file.cache_clear()

    def _mapped(self, table: Table, rows: np.ndarray | None) -> Iterator[tuple[int, list[MappedRow]]]:
        """Yields (index, questions) of a table's rows in their order; several threads map few rows at a time."""
        read = zip(itertools.count() if rows is None else rows.tolist(), table.rows(rows), strict=False)
        with ThreadPoolExecutor(THREADS) as executor:
            while part := list(itertools.islice(read, 128)):
                questions = executor.map(partial(self.questions, table.folder), (row for _, row in part))
                yield from zip((index for index, _ in part), questions, strict=True)

    def questions(self, folder: Path | None, read: tuple[str, Row]) -> list[MappedRow]:
        """Returns the questions of a row, at least one. folder: of relative picture paths. read: ("file:number", row).
        Thread-safe."""
        where, row = read
        try:
            if isinstance(row, BadRowError):
                raise row
            drafts = self._layout.drafts(row)
        except BadRowError as error:
            return [MappedRow(outcome=Rejected(row=where, reason=str(error), kind=error.kind))]
        further = 0 if self.source.turns == "all" else len(drafts) - 1
        drafts = drafts[: len(drafts) - further]
        names = [where, *(f"{where}/{turn}" for turn in range(2, len(drafts) + 1))]
        used = self._layout.keys
        unused = [key for key, value in row.items() if value is not None and key not in used and key[:2] != "__"]
        seen: dict[bytes, Checked] = {}
        asked = [self._question(*one, folder, unused, seen) for one in zip(names, drafts, strict=True)]
        return [replace(asked[0], further=further), *asked[1:]]

    def _question(
        self, where: str, draft: Draft, folder: Path | None, unused: list[str], seen: dict[bytes, Checked]
    ) -> MappedRow:
        """seen: the row's encoded pictures that its earlier turns have shown, as they were checked; is extended."""
        files: dict[str, Stamp] = {}
        changes: list[str] = []
        outcome: Problem | Rejected
        try:
            problem = self._problem(where, draft, folder)
            files = {one.path: stamp(one.path) for one in problem.pictures if one.path is not None}
            for one in problem.pictures:
                if one.data is not None and one.data not in seen:
                    seen[one.data] = check(one, self._max_pixels)
            checked = [
                self._of_file(one.path, files[one.path]) if one.path is not None else seen[one.data or b""]
                for one in problem.pictures
            ]
            outcome = replace(problem, pictures=tuple(picture for picture, _ in checked))
            changes = [change for _, made in checked for change in made]
        except BadRowError as error:
            outcome = Rejected(row=where, reason=str(error), kind=error.kind)
        return MappedRow(outcome=outcome, unused=unused, changes=changes, files=files)

    def _problem(self, where: str, draft: Draft, folder: Path | None) -> Problem:
        """Returns the question without reading its pictures. Raises BadRowError."""
        source = self.source
        choices = choices_of(draft.choices)
        label, references = label_of(draft.answer)
        if choices and references:
            raise BadRowError(f"answer: several right choices, {shown(references)}: expected one")
        right = right_choice(label, choices, source.answer_is)
        texts, images = placed([draft.question, *choices.values()], draft.images)
        if not (question := bare(texts[0])) or not right:
            raise BadRowError(f"empty {'answer' if question else 'question'}")
        if len(images) > self._max_pictures:
            raise BadRowError(f"{len(images)} pictures, expected at most engine.max_pictures = {self._max_pictures}")
        own, turn = _name(draft.id, "id"), where.rpartition(":")[2].partition("/")[2]
        prefix = f"{source.name}/" if source.name else ""
        problem = Problem(
            id=prefix + (f"{own}/{turn}" if own and turn else own or where),
            question=question,
            label=dict(zip(choices.values(), texts[1:], strict=True)).get(right, right),
            pictures=tuple(named(image, folder) for image in images),
            choices=tuple(texts[1:]),
            kind=self._kind_of_value(draft.kind),
            references=references,
            suffix=source.suffix,
            rule=source.rule or "",
            dataset=source.name or "",
        )
        check_texts(problem, self._special)
        return problem

    def _kind_of(self, row: Row) -> str:
        """Returns the kind of a row; "" for a row that cannot be read."""
        try:
            return self._kind_of_value(self._layout.kind(row)) if isinstance(row, dict) else ""
        except BadRowError:
            return ""

    def _kind_of_value(self, value: Any) -> str:
        return _name(value, "kind") or self.source.name or "all"


def _name(value: Any, key: str) -> str | None:
    if isinstance(value, list):
        return "/".join(dict.fromkeys(filter(None, (_name(one, key) for one in value)))) or None
    if value is None or value != value:  # NaN stands for a missing value in a column of numbers
        return None
    text = as_text(str(value) if isinstance(value, bool) else value, key)
    if len(text) > 500:
        raise BadRowError(f"{key}: expected at most 500 characters, found {len(text)}")
    return text or None


def load(
    sources: Sequence[DataSource],
    seed: int,
    max_quarantined_share: float,
    max_pictures: int = 1,
    *,
    most: int | None = None,
    max_pixels: int = PILLOW_MAX_PIXELS,
    special: str = NO_SPECIAL,
    spool: Path,
    first: int | None = None,
) -> Problems:
    """Draws questions from the sources in an order shuffled by ``seed``, kinds balanced within a source, and writes
    them to ``spool``; opens it when the same files, pictures and arguments made it. most: of all sources together.
    special: a regular expression; questions with a match in a text are set aside. first: only look at so many questions
    of each source. Raises DataError when a source or the spool cannot be opened, or ``refuse_too_many`` does."""
    readers = [SourceReader(one, max_pictures, max_pixels, special) for one in sources]
    made_by = [[asdict(one.source), [table.stamp() for table in one.tables]] for one in readers]
    key = json.dumps([FORMAT, PIL.__version__, made_by, seed, most, max_pictures, max_pixels, special, first])
    if (problems := _kept(spool, key)) is None:
        with new_file(spool, DataError) as content, tempfile.TemporaryFile(dir=spool.parent) as entries:
            _write(readers, SpoolWriter(content, entries), seed, most, first, key)
        problems = Problems(spool)
    refuse_too_many(problems, max_quarantined_share)
    return problems


def count(sources: Sequence[DataSource], most: int | None = None) -> int:
    """Returns how many questions ``load`` takes if all can be used; counts rows without their pictures. A source that
    has ``rows`` and is not a file or folder of this machine is taken to have as many."""
    sizes = [one.rows if one.rows and not Path(one.path).exists() else _size(one) for one in sources]
    return sum(mixture.quotas(sources, sizes, most))


def _size(source: DataSource) -> int:
    return SourceReader(source, 1, PILLOW_MAX_PIXELS, NO_SPECIAL).size


def _kept(spool: Path, key: str) -> Problems | None:
    try:
        problems = Problems(spool)
    except DataError:
        return None
    if problems.key != key:
        return None
    if not problems.pictures_are_as_noted():
        warn(f"{spool}: pictures have changed since its rows were read; they are read again")
        return None
    return problems


def _write(
    readers: Sequence[SourceReader], writer: SpoolWriter, seed: int, most: int | None, first: int | None, key: str
) -> None:
    sources = [one.source for one in readers]
    limited = first is None and any((most, *(one.rows or one.weight for one in sources)))
    sizes = [one.size for one in readers] if limited else []
    shares = mixture.quotas(sources, sizes, most) if limited else []
    order = mixture.seeded(sum(sizes), seed)
    numbers, counts, remarks, begin = array("I"), [], [], 0
    for place, reader in enumerate(readers):
        copy = _Copy(reader, writer, first)
        if limited:
            own = order[(order >= begin) & (order < begin + sizes[place])] - begin
            copy.draw(own, shares[place])
        else:
            copy.add(None)
        reader.forget()
        numbers.extend(begin + number for number in copy.taken)
        begin += sizes[place] if limited else copy.read
        size = sizes[place] if limited else None
        named = {"name": reader.source.name or "", "path": reader.source.path}
        taken = len(copy.taken)
        counts.append(SourceCounts(**named, taken=taken, set_aside=copy.read - taken, size=size, more=copy.more))
        if limited and size and not shares[place]:
            remarks.append(f"{reader.name}: no question, for its share of the mixture is less than one")
        if limited and taken < shares[place]:
            remarks.append(f"{reader.name}: {taken} questions instead of {shares[place]}; the others cannot be used")
    # Unusable rows take part, so that mending one does not change the order of the others.
    writer.finish(lambda: _places(order if limited else mixture.seeded(begin, seed), numbers), key, counts, remarks)


def _places(order: np.ndarray, numbers: "array[int]") -> np.ndarray:
    """Returns the places of the taken questions in their order, uint32. order: of the numbers of all questions;
    numbers: those of the taken ones, as they were added."""
    places = np.full(len(order), len(order), np.uint32)
    places[np.frombuffer(numbers, np.uint32)] = np.arange(len(numbers), dtype=np.uint32)
    found = places[order]
    return found if len(numbers) == len(order) else found[found < len(order)]


class _Copy:
    """Copies questions of a source to a spool."""

    def __init__(self, reader: SourceReader, writer: SpoolWriter, first: int | None) -> None:
        self._reader, self._writer, self._first = reader, writer, first
        self.taken = array("I")  # numbers of the usable questions, as they were added
        self.read = 0
        self.more = False  # whether only ``first`` were looked at, and there are more

    def draw(self, order: np.ndarray, quota: int) -> None:
        """Adds the first ``quota`` usable questions of ``order``, kinds balanced. order: numbers of all questions."""
        sequence = mixture.balanced(order, self._reader.kinds() if quota < len(order) else None)
        start = 0
        while start < len(sequence) and (missing := quota - len(self.taken)):
            part = sequence[start : start + missing]
            self.add(np.sort(part) if len(part) < len(order) else None)
            start += missing

    def add(self, chosen: np.ndarray | None) -> None:
        """Raises DataError when none of many questions can be used."""
        said = time.monotonic()
        for mapped in self._reader.read(chosen):
            if self.read == self._first:
                self.more = True
                return
            self._writer.add(mapped)
            self.read += 1
            if isinstance(mapped.outcome, Problem):
                self.taken.append(mapped.number)
            elif self.read >= _HOPELESS and not self.taken:
                told = f"none of the first {self.read} questions can be used, such as {mapped.outcome.row}"
                raise DataError(f"{self._reader.name}: {told}: {mapped.outcome.reason}")
            if time.monotonic() - said > 10:
                said = time.monotonic()
                say(f"{self._reader.name}: {self.read} questions are read, their pictures decoded")


def reasons(rejected: Iterable[Rejected]) -> list[str]:
    """Returns the most frequent reasons, each with its number of rows and its first row. Reasons that differ only in
    names and numbers count as one."""
    alike: dict[str, list[Rejected]] = defaultdict(list)
    for one in rejected:
        alike[re.sub(r"/\S+|'[^']*'|\d+", "…", one.reason)].append(one)
    those = sorted(alike.values(), key=len, reverse=True)[:6]
    return [f"{len(rows)} × {cut(rows[0].reason, LONGEST)} ({rows[0].row})" for rows in those]


def refuse_too_many(loaded: Problems, allowed: float) -> None:
    """Raises DataError when of a source more than the fraction ``allowed`` was set aside, or all, or it has no row."""
    for source in loaded.sources:
        aside, total = source.set_aside, source.taken + source.set_aside
        if (source.taken and aside / total <= allowed) or (source.size and not total):
            continue
        if not total:
            raise DataError(f"{source.path}: expected rows, found none.")
        told = reasons(loaded.rejected)
        if not source.taken and len(loaded.sources) == len(told) == 1:
            remedy = ". images names the folder of relative paths" if told[0].find("does not exist") > 0 else ""
            raise DataError(f"{source.path}: no row can be used. {told[0]}{remedy}")
        lines = "\n  ".join([*told, *loaded.remarks])
        raise DataError(
            f"{source.path}: {aside} of {total} rows cannot be used; data.max_quarantined_share allows {allowed:g} "
            f"(never all). The most frequent reasons:\n  {lines}\nMend the rows, or raise data.max_quarantined_share."
        )


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """Held-out questions that overlap with the training data: accuracy on them may measure memory."""

    same_question: int
    """Held-out questions that are training questions too: same words (case and punctuation aside) and pictures."""
    same_picture: int  # other held-out questions whose pictures occur in training
    examples: list[str]  # ids of the first three ``same_question``


def overlap(train: Problems, held_out: Problems) -> Overlap:
    """Compares two sources by digests of words and of pictures' contents."""
    asked, shown = (np.isin(held_out.column(name), train.column(name)) for name in ("asked", "shown"))
    return Overlap(
        same_question=int(asked.sum()),
        same_picture=int((shown & ~asked).sum()),
        examples=[held_out[int(position)].id for position in np.flatnonzero(asked)[:3]],
    )
