"""Work in batches on several threads."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

T = TypeVar("T")

Each = Callable[[Callable[[Any], None], Iterable[Any]], Iterator[Any]]


def batches(rows: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (rows[start : start + size] for start in range(0, len(rows), size))


@contextmanager
def threads(count: int) -> Iterator[Each]:
    """``each(function, items)``: run on ``count`` threads, yield items as they are finished, raise the first error.

    An item is taken from ``items`` when a thread has time for it, so no more than ``count`` are held at a time. When
    the block is left early nothing more is started, and what runs is not waited for.
    """
    executor = ThreadPoolExecutor(count)
    stopping = threading.Event()

    def each(function: Callable[[Any], None], items: Iterable[Any]) -> Iterator[Any]:
        source, taking = iter(items), threading.Lock()
        news: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()

        def work() -> None:
            try:
                while not stopping.is_set():
                    with taking:
                        item = next(source)
                    function(item)
                    news.put(("done", item))
            except StopIteration:
                pass
            except BaseException as error:  # noqa: BLE001 - raised where the items are awaited
                news.put(("failed", error))
            news.put(("ended", None))

        for _ in range(count):
            executor.submit(work)
        working = count
        while working:
            what, item = news.get()
            if what == "failed":
                raise item
            if what == "done":
                yield item
            else:
                working -= 1

    try:
        yield each
    finally:
        stopping.set()
        executor.shutdown(wait=False, cancel_futures=True)


def at_once(actions: Sequence[Callable[[], None]]) -> None:
    """Each action on a thread of its own; raises the first one's error once all have ended."""
    if len(actions) == 1:
        actions[0]()
    elif actions:
        with ThreadPoolExecutor(len(actions)) as executor:
            running = [executor.submit(action) for action in actions]
        for one in running:
            one.result()
