"""Maps rows of a source to problems; decodes each picture once to check it."""

import itertools
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, get_args

from masters_ray.config import DataSource
from masters_ray.data import sources
from masters_ray.data.labels import Reading, choices_of, readings, right_choice
from masters_ray.data.pictures import Stamp, check, named, stamp
from masters_ray.data.texts import BadRowError, as_text, check_texts, cut
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
_FIRST = 500
"""Rows read to find out how the labels of a source name their choices."""
_REMEMBERED = 4096
"""Checked picture files that are remembered: questions about the same picture are mostly close together."""


@dataclass(frozen=True, kw_only=True)
class MappedRow:
    """A row of a source as a problem, or why it is rejected."""

    where: str
    outcome: Problem | Rejected
    """A problem has the digests of its pictures."""
    unused: list[str]
    """Columns with a value that are not read."""
    changes: list[str]
    """Changes made while decoding its pictures, in words."""
    files: dict[str, Stamp]
    """Picture files that were read, with their stamps from before."""


class Mapper:
    """Maps a source's rows to problems; thread-safe."""

    def __init__(self, source: DataSource, max_pictures: int, max_pixels: int, special: str) -> None:
        """Reads the first rows to find out how labels name choices. Arguments as in ``load``. Raises DataError."""
        self._folder = Path(source.path).parent
        self._max_pictures, self._max_pixels, self._special = max_pictures, max_pixels, special
        self._usual = _usual_reading(source)
        self._of_file = lru_cache(_REMEMBERED)(lambda path, _: check(Picture(path=path), max_pixels))

    def __call__(self, read: tuple[str, sources.Row]) -> MappedRow:
        """read: an item of ``sources.rows``; its pictures' paths are relative to the source's directory."""
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
        if not 1 <= len(images) <= self._max_pictures:
            raise BadRowError(f"{len(images)} pictures, expected 1 to engine.max_pictures = {self._max_pictures}")
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
    """Returns how most labels of the first rows name their choices; text wins a tie. It decides for ambiguous labels,
    such as a number among choices that are numbers."""
    counts: Counter[Reading] = Counter()
    for _, row in itertools.islice(sources.rows(source), _FIRST):
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
    return as_text(str(value) if isinstance(value, bool) else value, key) or None
