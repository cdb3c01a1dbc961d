"""Prints progress: a bar in a terminal, a line every ten seconds in a log."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TextColumn

console = Console(highlight=False, emoji=False, markup=False)

Advance = Callable[..., None]
"""advance(count, note=""): adds ``count`` finished pieces and shows the note behind the bar."""


def say(text: str) -> None:
    """Prints one line."""
    console.print(text, soft_wrap=True)


warnings: list[str] = []
"""All warnings of this process, in their order."""
listeners: list[Callable[[str], None]] = []
"""Called with each warning, after it was printed."""


def warn(text: str) -> None:
    """Prints a warning and keeps it for the end of the command: something was lost, mended, or should be looked at."""
    say(f"warning: {text}")
    warnings.append(text)
    for heard in listeners:
        heard(text)


@contextmanager
def track(title: str, total: int, done: int = 0) -> Iterator[Advance]:
    """Yields the function that advances a bar of ``total`` pieces, of which ``done`` are finished at the start."""
    if not console.is_terminal:
        yield _lines(title, total, done)
        return
    columns = (*Progress.get_default_columns(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"))
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(title, total=total, completed=done, note="")

        def advance(count: int, note: str = "") -> None:
            progress.update(task, advance=count, note=note)

        yield advance


def _lines(title: str, total: int, done: float) -> Advance:
    started = said = time.monotonic()

    def advance(count: int, note: str = "") -> None:
        nonlocal done, said
        done += count
        now = time.monotonic()
        if done >= total or now - said >= 10:
            said = now
            say(f"{title}: {done:.0f}/{total} in {now - started:.0f} s  {note}".rstrip())

    return advance
