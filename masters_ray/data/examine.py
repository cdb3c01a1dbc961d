"""Rows of a source → problems whose pictures were decoded once, on several threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, TypeVar

from masters_ray.data import files
from masters_ray.data.pictures import BadPictureError, Checked, check
from masters_ray.data.pixels import Change
from masters_ray.data.scalars import BadRowError
from masters_ray.data.sources import Reader
from masters_ray.data.texts import reason_against
from masters_ray.records import Picture, Problem, Rejected, RejectedBy

T = TypeVar("T")
_UNDER_WAY = 4
"""Rows for each thread that are taken from the source and not yet given on."""
_REMEMBERED = 4096
"""Picture files: the questions about one mostly stand together."""


@dataclass(frozen=True, kw_only=True)
class Examined:
    """One row of a source."""

    where: str
    outcome: Problem | Rejected
    """The problem with the digests of its pictures."""
    changes: tuple[Change, ...] = ()
    """What decoding its pictures takes beside."""
    files: tuple[tuple[str, files.Stamp], ...] = ()
    """Those of its pictures that were looked at, as they were before."""


class Examiner:
    """Looks at rows; called by several threads at once."""

    def __init__(self, reader: Reader, max_pictures: int, max_pixels: int, special: str) -> None:
        """special: as of ``load``."""
        self._reader, self._max_pictures, self._max_pixels = reader, max_pictures, max_pixels
        self._special = special
        self._of_file = lru_cache(_REMEMBERED)(self._look_at)

    def __call__(self, row: tuple[str, Any]) -> Examined:
        """row: one of ``sources.rows``."""
        where, content = row
        looked: list[tuple[str, files.Stamp]] = []
        checked: list[Checked] = []
        try:
            problem = self._reader.problem(content, where)
            self._count(problem)
            if (reserved := reason_against(problem, self._special)) is not None:
                return Examined(where=where, outcome=Rejected(row=where, reason=reserved, kind="text"))
            for picture in problem.pictures:
                if picture.path is None:
                    checked.append(check(picture, self._max_pixels))
                    continue
                stamp, found = self._of_file(picture.path)
                looked.append((picture.path, stamp))
                if isinstance(found, str):
                    raise BadPictureError(found)
                checked.append(found)
        except (BadRowError, BadPictureError) as reason:
            kind: RejectedBy = "picture" if isinstance(reason, BadPictureError) else "row"
            return Examined(
                where=where, outcome=Rejected(row=where, reason=str(reason), kind=kind), files=tuple(looked)
            )
        return Examined(
            where=where,
            outcome=replace(problem, pictures=tuple(one.picture for one in checked)),
            changes=tuple(change for one in checked for change in one.changes),
            files=tuple(looked),
        )

    def _count(self, problem: Problem) -> None:
        if len(problem.pictures) > self._max_pictures:
            raise BadRowError(
                f"{len(problem.pictures)} pictures; the engines take {self._max_pictures} (engine.max_pictures)"
            )

    def _look_at(self, path: str) -> tuple[files.Stamp, Checked | str]:
        """The picture, or why it cannot be used; and its file as it was before."""
        stamp = files.stamp(path)
        try:
            return stamp, check(Picture(path=path), self._max_pixels)
        except BadPictureError as error:
            return stamp, str(error)


def in_order(function: Callable[[T], Examined], items: Iterable[T], threads: int) -> Iterator[Examined]:
    """``function`` of each item, in the items' order, of which few are held at a time."""
    waiting: deque[Future[Examined]] = deque()
    with ThreadPoolExecutor(threads) as executor:
        try:
            for item in items:
                waiting.append(executor.submit(function, item))
                if len(waiting) > _UNDER_WAY * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for one in waiting:
                one.cancel()
