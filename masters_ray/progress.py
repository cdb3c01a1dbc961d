"""Prints what a command does: live in a terminal, else as lines of text or JSON; and writes the run's log."""

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal, Self

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Column
from rich.text import Text

from masters_ray.files import as_json

console = Console(highlight=False, emoji=False, markup=False)
_errors = Console(stderr=True, highlight=False, emoji=False, markup=False)
_SECONDS_BETWEEN_LINES = 10
_WINDOW = 600.0
"""Seconds over which rates are means."""
_MOST_WARNINGS = 20

Form = Literal["text", "json"]
warnings: list[str] = []
"""All warnings of this command, in their order."""
listeners: list[Callable[[str], None]] = []
"""Called with each warning, after it was printed."""


@dataclass
class _Output:
    form: Form | None = None
    """None: live in a terminal, else text."""
    verbose: bool = False
    log: Path | None = None
    unlogged: list[str] = field(default_factory=list)
    """Lines that were printed before the log was known."""
    conclusions: list[str] = field(default_factory=list)
    bars: Progress | None = None
    lock: threading.RLock = field(default_factory=threading.RLock)


_output = _Output()


def begin(form: Form | None = None, verbose: bool = False) -> None:
    """Starts a command's output. form: default: live in a terminal, else text. verbose: ``shows_workers``."""
    global _output
    _output = _Output(form, verbose)
    warnings.clear()


def shows_workers() -> bool:
    """Returns whether the lines of Ray, the engines and the learner's libraries are printed too."""
    return _output.verbose


def is_live() -> bool:
    return console.is_terminal and _output.form is None


def log_to(file: Path) -> None:
    """Appends to ``file``, with times, what this command has printed and prints until another file is named."""
    with _output.lock:
        lines, _output.unlogged, _output.log = _output.unlogged, [], file
        _write(lines)


def say(text: str) -> None:
    emit("say", text)


def warn(text: str) -> None:
    """Prints a warning and keeps it for the end of the command: something was lost, mended, or should be looked at."""
    emit("warning", text, prefix="warning: ", style="yellow")
    warnings.append(text)
    for heard in listeners:
        heard(text)


def conclude(text: str) -> None:
    """Prints a text at the end of the command, below the warnings."""
    _output.conclusions.append(text)


def end() -> None:
    """Prints the warnings again, each once with its count, and what ``conclude`` was given."""
    counts = Counter(warnings).most_common() if warnings else []
    if counts:
        say(f"{len(warnings)} warning{'s' * (len(warnings) != 1)}:")
    for text, count in counts[:_MOST_WARNINGS]:
        times = f" ({count} times)" if count > 1 else ""
        emit("repeated", text, prefix=f"  warning{times}: ", style="yellow", count=count)
    if (more := len(counts) - _MOST_WARNINGS) > 0:
        say(f"  and {more} more, printed above")
    for text in _output.conclusions:
        say(text)
    warnings.clear()
    _output.conclusions.clear()


def fail(text: str, exit_code: int) -> None:
    """Prints the error that ends the command: on stderr, and as the last JSON line."""
    _errors.print(Text(f"masters-ray: {text}", "bold red"), soft_wrap=True)
    emit("error", text, prefix="masters-ray: ", printed=False, exit_code=exit_code)


def emit(kind: str, text: str, *, prefix: str = "", style: str = "", printed: bool = True, **fields: Any) -> None:
    """Prints an event: as prefix + text, or as a JSON object with the fields. printed: False: text in the log alone."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    with _output.lock:
        if _output.form == "json":
            print(json.dumps(as_json({"time": now, "kind": kind, "text": text} | fields)), flush=True)
        elif printed:
            # A path that is longer than a line must not be broken.
            longest = max(map(len, text.split()), default=0)
            console.print(Text(prefix + text, style), soft_wrap=not is_live() or longest > console.width)
        _write([f"{now}  {line}".rstrip() for line in (prefix + text).splitlines() or [""]])


def _write(lines: list[str]) -> None:
    """Appends to the log; a log that cannot be written is given up with a warning."""
    if _output.log is None:
        _output.unlogged += lines
        return
    try:
        with _output.log.open("a", encoding="utf-8", errors="replace") as log:
            log.writelines(f"{line}\n" for line in lines)
    except OSError as error:
        told, _output.log = f"{_output.log} cannot be written any more ({error.strerror})", None
        warn(told)


class Doing:
    """A context manager that shows what is being done, and for how long; paths below the current directory are cut.

    A log gets the line ``title …`` after 10 s, and ``title (38 s)`` at the end if it took ``told_from`` seconds.
    Nothing is said of the end when the block raises."""

    def __init__(self, title: str, told_from: float = 1.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._told_from, self._clock, self._title = told_from, clock, ""
        self.then(title)

    def then(self, title: str) -> None:
        """Ends what is being done and begins another thing; "": nothing."""
        self.end()
        self._title = title = title.replace(f"{Path.cwd()}/", "")
        self._began = self._clock()
        if title:
            self._bar, options = _Bar(title), {"title": title, "printed": not is_live()}
            self._late = threading.Timer(_SECONDS_BETWEEN_LINES, emit, ("doing", f"{title} …"), options)
            self._late.daemon = True
            self._late.start()

    def end(self, told: bool = True) -> None:
        if not self._title:
            return
        self._late.cancel()
        self._bar.remove()
        title, self._title, seconds = self._title, "", self._clock() - self._began
        if told and seconds >= self._told_from:
            emit("done", f"{title} ({_span(seconds)})", title=title, seconds=seconds)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.end(told=kind is None)


@contextmanager
def track(
    title: str, total: int, done: int = 0, kind: str = "progress", clock: Callable[[], float] = time.monotonic
) -> Iterator["Advance"]:
    """Yields what advances a bar of ``total`` pieces, of which ``done`` are finished at the start. kind: of its lines
    in JSON."""
    advance = Advance(title, total, done, kind, clock)
    try:
        yield advance
    finally:
        advance.bar.remove()


class Advance:
    """Advances a bar. A log gets a line every ten seconds, and one with the last piece. Rates are of what was made
    after the first call, so that a start-up counts in none."""

    def __init__(self, title: str, total: int, done: int, kind: str, clock: Callable[[], float]) -> None:
        self._title, self._total, self._done, self._kind, self._clock = title, total, done, kind, clock
        self._began = self._said = clock()
        self._made = self._rows = 0
        self._paces = Progress(disable=True, get_time=clock, speed_estimate_period=_WINDOW)
        self._counters: dict[str, TaskID] = {}
        self.bar = _Bar(title, total)

    def __call__(
        self,
        count: int,
        note: str = "",
        *,
        made: int | None = None,
        tokens: Mapping[str, float] | None = None,
        cells: Mapping[str, str] | None = None,
        fields: Mapping[str, Any] | None = None,
    ) -> None:
        """Adds ``count`` finished pieces. made: how many of them set the pace; default: all. tokens: role → tokens
        written so far. cells: heading → figure, of equal width each time, of a table in place of a note. fields: for
        JSON."""
        now = self._clock()
        self._done, self._made = self._done + count, self._made + (count if made is None else made)
        speeds = {name: self._speed(name, sum) for name, sum in {"": self._made, **(tokens or {})}.items()}
        speed, last, seconds = speeds.pop(""), self._done >= self._total, now - self._began
        eta = (self._total - self._done) / speed if speed and not last else None
        if last and seconds:
            speeds = {role: written / seconds for role, written in (tokens or {}).items()}
        if rates := ", ".join(f"{role} {short(rate)}" for role, rate in speeds.items() if rate):
            note = f"{note}  tokens/s: {rates}".strip()
        heads = "".join(name.rjust(len(figure)) for name, figure in (cells or {}).items())
        row, done, ends = "".join((cells or {}).values()), f"{self._done}/{self._total}", _span(eta) if eta else ""
        self.bar.update(self._done, f"{done}, ETA {ends} " if eta else f"{done} ", f"{heads}\n{row}" if cells else note)
        if not last and now - self._said < _SECONDS_BETWEEN_LINES:
            return
        self._said, self._rows = now, self._rows + 1
        text = f"{self._title}: {done} in {_span(seconds)}" + (f", ETA {ends}" if eta else "")
        if is_live() and (cells or len(text) + 2 + len(note) > console.width):
            text += f"\n  {heads}\n  {row}" if cells else f"\n  {note}"
        elif cells:
            width = 2 * len(str(self._total)) + 3
            heads = f"{'step':>{width}}{heads}{'ETA':>9}\n" if self._rows % 20 == 1 else ""
            text = f"{heads}{done:>{width}}{row}{ends:>9}"
        elif note:
            text += f"  {note}"
        numbers: dict[str, Any] = {"title": self._title, "done": self._done, "total": self._total, "seconds": seconds}
        numbers |= {"eta_seconds": eta, "tokens_per_second": speeds, **(fields or {})}
        emit(self._kind, text.rstrip(), printed=last or not is_live(), **numbers)

    def _speed(self, name: str, completed: float) -> float:
        if name not in self._counters:
            self._counters[name] = self._paces.add_task(name, total=None)
        self._paces.update(self._counters[name], completed=completed)
        return self._paces.tasks[self._counters[name]].speed or 0.0


def short(count: float) -> str:
    """Examples: 873 gives ``873``, 12345 gives ``12.3k``."""
    return f"{count:.3g}" if count < 999.5 else f"{count / 1e3:.3g}k" if count < 999.5e3 else f"{count / 1e6:.3g}M"


def _span(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 99.5 else str(timedelta(seconds=round(seconds)))


class _Bar:
    """A row of the terminal's live display, with a note below it; nothing where there is none."""

    def __init__(self, title: str, total: int | None = None) -> None:
        self._task: TaskID | None = None
        if is_live():
            with _output.lock:
                if _output.bars is None:
                    _output.bars = _Bars(console=console, transient=True, refresh_per_second=5, expand=True)
                    _output.bars.start()
                self._task = _output.bars.add_task(title, total=total, told="", note="")

    def update(self, done: int, told: str, note: str) -> None:
        if _output.bars is not None and self._task is not None:
            _output.bars.update(self._task, completed=done, told=told, note=note)

    def remove(self) -> None:
        with _output.lock:
            if _output.bars is not None and self._task is not None:
                _output.bars.remove_task(self._task)
                if not _output.bars.tasks:
                    _output.bars.stop()
                    _output.bars = None
            self._task = None


class _Bars(Progress):
    @classmethod
    def get_default_columns(cls) -> Any:
        title = TextColumn("{task.description}", table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis"))
        told = TextColumn("{task.fields[told]}", table_column=Column(no_wrap=True))
        return SpinnerColumn(), title, BarColumn(bar_width=12), told, TimeElapsedColumn()

    def get_renderables(self) -> Iterator[RenderableType]:
        for task in self.tasks:
            note = Text(task.fields["note"], "dim", no_wrap=True, overflow="ellipsis")
            yield Group(self.make_tasks_table([task]), *([Padding(note, (0, 0, 0, 2))] if note else []))
