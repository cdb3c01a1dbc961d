"""A source in its seeded order: from its spool, or read anew into one."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import PIL

from masters_ray.config import DataSource
from masters_ray.data import build, files, sources
from masters_ray.data.build import Collected
from masters_ray.data.pictures import DEFAULT_MAX_PIXELS
from masters_ray.data.pixels import Change
from masters_ray.data.scalars import cut
from masters_ray.data.spool import FORMAT, Note, Problems, opened
from masters_ray.data.texts import NO_SPECIAL
from masters_ray.errors import DataError, writing
from masters_ray.files import write_text
from masters_ray.progress import say
from masters_ray.records import Rejected

_MANY_KINDS = 50
_COLUMNS_TOLD = 12
_REASONS_TOLD = 5
_REASON = 500
"""Characters of a reason in a message."""


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A source in its seeded order."""

    problems: Problems
    rejected: list[Rejected]

    @property
    def unused(self) -> dict[str, int]:
        """Column that is not read → rows that have a value in it."""
        return self.problems.note.unused

    @property
    def remarks(self) -> list[str]:
        """What a person should know of the source."""
        return self.problems.note.remarks

    @property
    def changes(self) -> dict[Change, int]:
        """Pictures of the rows that can be used, by what decoding them takes beside."""
        return self.problems.note.changes


def load(
    source: DataSource,
    seed: int,
    max_quarantined_share: float,
    max_pictures: int = 1,
    *,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    special: str = NO_SPECIAL,
    spool: Path,
    first: int | None = None,
) -> Loaded:
    """Read a source, shuffle it by ``seed``, take ``source.rows`` with kinds balanced; problems lie in ``spool``.
    first: look at no more than the source's first rows, so many.

    A spool that was made of the same file and the same pictures in the same way is opened, and the source is not read;
    another one, or a damaged one, is made again. Pictures are decoded: a row with one that is missing, broken or of
    more than ``max_pixels`` pixels, with more than ``max_pictures``, with an empty question or an empty label is set
    aside, and so is one in whose texts the regular expression ``special`` finds a token that tokenizers read as a mark.
    Raises DataError when the file cannot be read, when the spool cannot be written, when no row is left, or when more
    than ``max_quarantined_share`` of the rows are set aside.
    """
    key = _key(source, seed, max_pictures, max_pixels, special) | ({} if first is None else {"first": first})
    unsorted, unfinished = spool.with_name(spool.name + ".rows.tmp"), spool.with_name(spool.name + ".tmp")
    with writing(spool, DataError):
        spool.parent.mkdir(parents=True, exist_ok=True)
        _remove(unsorted, unfinished)
    pictures, noted = spool.with_suffix(".pictures"), spool.with_suffix(".pictures.tmp")
    problems = opened(spool, key)
    if problems is not None and not files.unchanged(pictures):
        say(f"{source.path}: pictures have changed since its rows were read; they are read again")
        problems = None
    if problems is None:
        try:
            _remove(spool)  # it must never stand beside other notes of its pictures
            collected = build.collect(source, unsorted, noted, max_pictures, max_pixels, special, first)
            refuse_too_many(source, collected.rejected, len(collected), max_quarantined_share, collected.unused)
            order = build.seeded_order(collected, seed, source.rows)
            note = Note(
                key=key,
                rows=len(order),
                rows_per_batch=build.rows_per_batch(collected),
                accepted=len(collected),
                rejected=collected.rejected,
                changes=dict(collected.changes),
                unused=collected.unused,
                remarks=_remarks(collected),
            )
            build.copy(collected, order, unfinished, note)
            with writing(spool, DataError):
                noted.replace(pictures)
                unfinished.replace(spool)
        finally:
            _remove(unsorted, unfinished, noted)
        problems = Problems(spool)
    note = problems.note
    refuse_too_many(source, note.rejected, note.accepted, max_quarantined_share, note.unused)
    return Loaded(problems=problems, rejected=note.rejected)


def write_quarantine(file: Path, rejected: Iterable[Rejected]) -> None:
    """One JSON object per row that was set aside: row, reason and kind. An empty file says that there was none."""
    lines = [json.dumps(asdict(one), ensure_ascii=False) + "\n" for one in rejected]
    write_text(file, "".join(lines), DataError)


def _key(source: DataSource, seed: int, max_pictures: int, max_pixels: int, special: str) -> dict[str, Any]:
    """All that decides what a spool holds."""
    file = sources.origin(source)
    found = file.stat()
    return {
        "format": FORMAT,
        "pillow": PIL.__version__,
        "source": {"format": source.format, "path": source.path, "rows": source.rows},
        "file": {"path": str(file.absolute()), "size": found.st_size, "mtime_ns": found.st_mtime_ns},
        "seed": seed,
        "max_pictures": max_pictures,
        "max_pixels": max_pixels,
        "special": special,
    }


def _remove(*files: Path) -> None:
    for file in files:
        file.unlink(missing_ok=True)


def _remarks(found: Collected) -> list[str]:
    remarks = []
    if found.unused:
        remarks.append(f"columns that are not used: {_columns(found.unused)}")
    if found.repeated:
        remarks.append(
            f"{len(found.repeated)} rows have the id of an earlier one, which was made unique by their row numbers "
            f"({found.repeated[0]})"
        )
    if len(found.names) > _MANY_KINDS:
        remarks.append(
            f"{len(found.names)} kinds of question, too many to compare one by one (accuracy is the mean over them): "
            "group them in the column kind, or leave it out"
        )
    return remarks


def _columns(unused: Mapping[str, int]) -> str:
    named = [
        f"{cut(key)} ({count} row{'s' if count != 1 else ''})" for key, count in list(unused.items())[:_COLUMNS_TOLD]
    ]
    return ", ".join(named) + (f" and {len(unused) - len(named)} more" if len(unused) > len(named) else "")


def refuse_too_many(
    source: DataSource,
    rejected: Sequence[Rejected],
    accepted: int,
    allowed: float,
    unused: Mapping[str, int] | None = None,
) -> None:
    """Raises DataError when more than ``allowed`` of the rows were set aside, or all. unused: columns that are not
    read."""
    total = len(rejected) + accepted
    if accepted and len(rejected) / total <= allowed:
        return
    name = source.path
    if not total:
        raise DataError(f"{name}: expected rows with question, answer and image, found none.")
    reasons = Counter(one.reason for one in rejected)
    firsts = list({one.reason: one for one in reversed(rejected)}.values())[::-1][:_REASONS_TOLD]
    examples = "\n".join(
        f"  {one.row}: {cut(one.reason, _REASON)}"
        + (f" (and {reasons[one.reason] - 1} more)" if reasons[one.reason] > 1 else "")
        for one in firsts
    )
    told, remedy = f"none of {total} rows can be used", "Mend the rows."
    if accepted:
        told = f"{len(rejected)} of {total} rows cannot be used; data.max_quarantined_share allows {allowed:g}"
        remedy = "Mend the rows, or raise data.max_quarantined_share."
    columns = f"Columns that are not used: {_columns(unused)}.\n" if unused else ""
    raise DataError(f"{name}: {told}. The first of them:\n{examples}\n{columns}{remedy}")
