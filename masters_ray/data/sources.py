"""Sources of problems: jsonl, parquet or easy-vqa, in a deterministic order, bad rows set aside with their reason."""

from __future__ import annotations

import io
import json
import random
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

from PIL import Image

from masters_ray import easy_vqa
from masters_ray.config import DataSource
from masters_ray.errors import DataError
from masters_ray.records import Picture, Problem, Rejected


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A source in its seeded order."""

    problems: list[Problem]
    rejected: list[Rejected]


class BadRowError(Exception):
    """Why one row cannot be used; becomes a Rejected, never reaches a caller."""


def load(source: DataSource, seed: int, max_quarantined_share: float, max_pictures: int = 1) -> Loaded:
    """Read a source, shuffle it by ``seed``, take ``source.rows`` with kinds balanced.

    A row with a missing or broken picture, with more than ``max_pictures``, with an empty question or an empty label is
    set aside. Raises DataError when the
    file cannot be read, when no row is left, or when more than ``max_quarantined_share`` of the rows are set aside.
    """
    problems: list[Problem] = []
    rejected: list[Rejected] = []
    seen: set[str] = set()
    for where, row in _rows(source):
        try:
            problem = row if isinstance(row, Problem) else _problem(row, where, Path(source.path or "."))
            if problem.id in seen:
                raise BadRowError(f"id {problem.id!r} stands in an earlier row; ids must be unique")
            _check_pictures(problem, max_pictures)
            seen.add(problem.id)
            problems.append(problem)
        except BadRowError as reason:
            rejected.append(Rejected(row=where, reason=str(reason)))
    total = len(problems) + len(rejected)
    if (total and len(rejected) / total > max_quarantined_share) or not problems:
        raise DataError(_too_many(source, rejected, total, max_quarantined_share))
    random.Random(seed).shuffle(problems)
    return Loaded(problems=_balanced(problems, source.rows), rejected=rejected)


def write_quarantine(file: Path, rejected: Iterable[Rejected]) -> None:
    """One JSON object per row that was set aside: row and reason. An empty file says that there was none."""
    lines = [json.dumps({"row": one.row, "reason": one.reason}, ensure_ascii=False) + "\n" for one in rejected]
    temporary = file.with_name(file.name + ".tmp")
    temporary.write_text("".join(lines), encoding="utf-8")
    temporary.replace(file)


def _rows(source: DataSource) -> Iterator[tuple[str, Any]]:
    """(where, row) of every row; a row is a mapping, a Problem (easy-vqa) or the bytes of a line."""
    if source.format == "easy_vqa":
        yield from ((f"easy-vqa {problem.id}", problem) for problem in easy_vqa.problems(source.split, source.kinds))
        return
    file = Path(source.path or "")
    if not file.is_file():
        raise DataError(f"{file}: expected a {source.format} file, found none. Set data.*.path to an existing file.")
    if source.format == "jsonl":
        with file.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield f"{file}:{number}", line
        return
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(file)
    except pyarrow.ArrowInvalid as error:
        raise DataError(f"{file}: expected a parquet file, found something else ({error}).") from error
    number = 0
    for batch in table.iter_batches(batch_size=256):
        for row in batch.to_pylist():
            number += 1
            yield f"{file}:{number}", row


def _problem(row: Any, where: str, file: Path) -> Problem:
    if isinstance(row, bytes):
        try:
            row = json.loads(row.decode("utf-8-sig"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise BadRowError(f"not JSON in UTF-8: {error}") from error
    if not isinstance(row, dict):
        raise BadRowError(f"expected an object with question, answer and image, found {type(row).__name__}")
    missing = [key for key in ("question", "answer", "image") if row.get(key) is None]
    if missing:
        raise BadRowError(f"no {', '.join(missing)}; the keys are {', '.join(map(str, row))}")
    for key in ("question", "answer"):
        if not isinstance(row[key], str | int | float):
            raise BadRowError(f"{key}: expected a text, found {type(row[key]).__name__}")
    question, label = str(row["question"]).strip(), str(row["answer"]).strip()
    if not question:
        raise BadRowError("empty question")
    if not label:
        raise BadRowError("empty answer")
    images = row["image"] if isinstance(row["image"], list) else [row["image"]]
    choices = row.get("choices") or []
    if not isinstance(choices, list):
        raise BadRowError(f"choices: expected a list, found {type(choices).__name__}")
    return Problem(
        id=str(row["id"]) if row.get("id") is not None else where,
        question=question,
        label=label,
        pictures=tuple(_picture(image, file.parent) for image in images),
        choices=tuple(str(choice) for choice in choices),
        kind=str(row.get("kind") or "all"),
    )


def _picture(image: Any, folder: Path) -> Picture:
    if isinstance(image, dict):  # the struct of bytes and path that datasets libraries write
        image = image.get("bytes") or image.get("path")
    if isinstance(image, bytes):
        return Picture(data=image)
    if isinstance(image, str):
        return Picture(path=str(folder / image))
    raise BadRowError(f"image: expected a path or bytes, found {type(image).__name__}")


def _check_pictures(problem: Problem, most: int) -> None:
    if not problem.pictures:
        raise BadRowError("no picture")
    if len(problem.pictures) > most:
        raise BadRowError(f"{len(problem.pictures)} pictures; the engines take {most} (engine.max_pictures)")
    for picture in problem.pictures:
        name = picture.path or "embedded picture"
        try:
            decode(picture)
        except FileNotFoundError:
            raise BadRowError(f"picture {name} does not exist") from None
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise BadRowError(f"picture {name} cannot be decoded: {error}") from error


def decode(picture: Picture) -> Image.Image:
    """The picture as RGB pixels. Raises OSError (missing or broken file) or what Pillow raises for broken content."""
    with Image.open(io.BytesIO(picture.read())) as image:
        return image.convert("RGB")


def _balanced(problems: list[Problem], rows: int | None) -> list[Problem]:
    """``rows`` problems, kinds taken in turn while they last, in the order they came; all when rows is None."""
    if rows is None or rows >= len(problems):
        return problems
    by_kind: dict[str, list[int]] = defaultdict(list)
    for index, problem in enumerate(problems):
        by_kind[problem.kind].append(index)
    taken: list[int] = []
    for turn in zip_longest(*(by_kind[kind] for kind in sorted(by_kind))):
        taken += [index for index in turn if index is not None]
    del taken[rows:]
    return [problems[index] for index in sorted(taken)]


def _too_many(source: DataSource, rejected: list[Rejected], total: int, allowed: float) -> str:
    name = source.path or "easy-vqa"
    if not total:
        return f"{name}: expected rows with question, answer and image, found none."
    examples = "\n".join(f"  {one.row}: {one.reason}" for one in rejected[:5])
    return (
        f"{name}: {len(rejected)} of {total} rows cannot be used; data.max_quarantined_share allows {allowed:g}. "
        f"The first of them:\n{examples}\nMend the rows, or raise data.max_quarantined_share."
    )


def with_embedded_pictures(problem: Problem) -> Problem:
    """The same problem with its pictures' encoded bytes in memory."""
    pictures = tuple(Picture(data=picture.read()) for picture in problem.pictures)
    return replace(problem, pictures=pictures)
