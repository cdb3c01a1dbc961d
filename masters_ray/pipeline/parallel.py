"""Calls beside each other on threads.

No circle of waiting can arise: a thread waits for its own call to a pool alone, and a pool's call waits for a free
replica, never for what another call returns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import islice
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def batches(rows: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (rows[start : start + size] for start in range(0, len(rows), size))


def in_parallel(function: Callable[[T], R], items: Iterable[T], threads: int) -> Iterator[tuple[T, R]]:
    """Each item and what the function returned for it, as calls finish. Raises the first call's error.

    An item is taken when a thread is free, so no more than ``threads`` are held at a time. When the iterator is left
    early nothing more is started, and what runs is not waited for.
    """
    executor = ThreadPoolExecutor(threads)
    source = iter(items)
    running: dict[Future[R], T] = {}
    try:
        while True:
            running |= {executor.submit(function, item): item for item in islice(source, threads - len(running))}
            if not running:
                return
            finished, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                yield running.pop(future), future.result()
    finally:
        executor.shutdown(wait=False, cancel_futures=True)


def at_once(actions: Sequence[Callable[[], R]]) -> list[R]:
    """What each action returns, each on a thread of its own. Raises the first one's error once all have ended."""
    if len(actions) == 1:
        return [actions[0]()]
    with ThreadPoolExecutor(max(1, len(actions))) as executor:
        running = [executor.submit(action) for action in actions]
    return [one.result() for one in running]
