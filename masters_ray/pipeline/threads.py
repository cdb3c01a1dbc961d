"""Work in batches on several threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from typing import Any, TypeVar

T = TypeVar("T")


def batches(rows: Sequence[T], size: int) -> list[Sequence[T]]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


@contextmanager
def threads(count: int) -> Iterator[Callable[[Callable[[Any], None], Sequence[Any]], Iterator[Any]]]:
    """``each(function, items)``: run on ``count`` threads, yield items as they are finished, raise the first error.

    When the block is left early nothing more is started, and what runs is not waited for.
    """
    executor = ThreadPoolExecutor(count)

    def each(function: Callable[[Any], None], items: Sequence[Any]) -> Iterator[Any]:
        futures: dict[Future[None], Any] = {executor.submit(function, item): item for item in items}
        for future in as_completed(futures):
            future.result()
            yield futures[future]

    try:
        yield each
    finally:
        executor.shutdown(wait=False, cancel_futures=True)
