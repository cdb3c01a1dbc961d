"""Runs calls in parallel on threads.

Deadlock is impossible: a thread waits only for its own call to a pool, and the call waits only for a free replica,
never for the result of another call.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import islice
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def batches(rows: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (rows[start : start + size] for start in range(0, len(rows), size))


def map_unordered(function: Callable[[T], R], items: Iterable[T], threads: int) -> Iterator[tuple[T, R]]:
    """Yields each item with the function's result, as calls finish. Raises the error of the first call that fails.

    Takes an item when a thread is free, so at most ``threads`` items are held at a time. When the iterator is closed
    early, no further call is started, and running calls are not waited for.
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


def run_all(actions: Sequence[Callable[[], R]]) -> list[R]:
    """Returns each action's result; each runs on its own thread. Raises the first failed action's error at the end."""
    with ThreadPoolExecutor(max(1, len(actions))) as executor:
        return [one.result() for one in [executor.submit(action) for action in actions]]
