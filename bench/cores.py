"""What this machine's cores are worth to processes that are busy at the same time: ``python -m bench.cores``, ten
seconds in which nothing else should run.

Two logical CPUs may be the two threads of one core, and whole cores share caches, memory and clock rate: n busy
processes get less than n times the work of one done. How much less depends on the work, so the processes here do what
those of a run on CPUs do (``_piece``), with one thread each: half of the time as engines, which push a few rows through
small matrices token after token, so that calling torch from Python is most of it; half of the time as the learner,
which takes thousands of rows through the same matrices and passes over activations that are larger than a core's own
cache.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from statistics import fmean, median
from typing import Any

from masters_ray.errors import Complaint, ConfigError

MOST = 8
"""Processes at the same time; of a machine with more CPUs these are measured, and the rest is worth as much each."""
_ROUNDS = 7
_SECONDS = 0.3
"""Of a round, about twenty pieces of work."""
_LEAD_SECONDS = 0.05
"""From the order to the common beginning."""
_UNDISTURBED = 0.95


@dataclass(frozen=True, kw_only=True)
class Cores:
    """The logical CPUs of a machine."""

    count: int
    worth: float
    """The work of ``count`` busy processes by that of one alone: from 1 to ``count``."""
    had: float
    """CPU seconds that a process had in each second while all were busy. Below 1 something else took the rest: other
    work, or a limit of the container."""

    def __str__(self) -> str:
        """Example: ``2 cores of this machine, worth 1.6 while both are busy``."""
        if self.count == 1:
            return "1 core of this machine"
        busy = "both" if self.count == 2 else "all"
        told = f"{self.count} cores of this machine, worth {self.worth:.3g} while {busy} are busy"
        if self.had >= _UNDISTURBED:
            return told
        return (
            f"{told}; unsure, for only {100 * self.had:.0f} % of their time was free for the measurement: repeat it "
            "when nothing else runs"
        )


@dataclass(frozen=True, kw_only=True)
class Done:
    """What a process did in a round."""

    rate: float
    """Pieces of work per second."""
    had: float
    """CPU seconds per second."""


Work = Callable[[Sequence[int]], Sequence[Done]]
"""Processes, by number → what each of them did while they, and no others, were busy."""


def measured_cores(rounds: int = _ROUNDS) -> Cores:
    """Of the CPUs that this process may use, in about ten seconds, in which nothing else should run. Raises ConfigError
    where there is no PyTorch, or a process that works is ended."""
    cpus = os.sched_getaffinity(0)
    if len(cpus) == 1:
        return Cores(count=1, worth=1.0, had=1.0)
    taken = whole_cores(cpus, MOST, _threads_of_core)
    with _processes(taken) as work:
        return compared(work, len(taken), len(cpus), rounds)


def compared(work: Work, processes: int, cpus: int, rounds: int) -> Cores:
    """One process alone and all of them, in turn; the median of the rounds counts. More CPUs than processes are worth
    as much each.

    Example: 100 pieces a second alone and 80 each of two at the same time make two CPUs worth 1.6.
    """
    everyone = range(processes)
    work(everyone)
    worth, had = [], []
    for number in range(rounds):
        [alone] = work([number % processes])
        together = work(everyone)
        worth.append(sum(one.rate for one in together) / alone.rate)
        had.append(fmean(one.had for one in together))
    within = min(max(median(worth), 1.0), float(processes))
    return Cores(count=cpus, worth=within * cpus / processes, had=median(had))


def whole_cores(cpus: Collection[int], most: int, threads_of_core: Callable[[int], Collection[int]]) -> list[int]:
    """About ``most`` of the CPUs: whole cores, since half of a core's threads would be worth more than half of it.

    threads_of_core: CPU → the CPUs of its core. Example: of 0 to 3, where 0 and 2 share a core, at most 2 are 0 and 2.
    """
    found: list[int] = []
    for cpu in sorted(cpus):
        if len(found) < most and cpu not in found:
            found += sorted({cpu, *threads_of_core(cpu)} & set(cpus))
    return found


def _threads_of_core(cpu: int) -> list[int]:
    """As Linux tells it, such as ``0,64`` or ``0-1``; the CPU alone where it does not."""
    try:
        told = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text(encoding="ascii")
    except OSError:
        return [cpu]
    ends = [[int(end) for end in part.split("-")] for part in told.strip().split(",")]
    return [one for part in ends for one in range(part[0], part[-1] + 1)]


@contextmanager
def _processes(cpus: Sequence[int]) -> Iterator[Work]:
    """As many processes as CPUs, which may be on all of these, at work when they are told to be."""
    context = multiprocessing.get_context("spawn")
    members: list[tuple[SpawnProcess, Connection]] = []
    try:
        for _ in cpus:
            here, there = context.Pipe()
            process = context.Process(target=_member, args=(there, list(cpus)), daemon=True)
            process.start()
            there.close()
            members.append((process, here))
        for member in members:
            _answer(*member)

        def work(numbers: Sequence[int]) -> list[Done]:
            begin = time.monotonic() + _LEAD_SECONDS
            for number in numbers:
                members[number][1].send(begin)
            return [_answer(*members[number]) for number in numbers]

        yield work
    finally:
        for process, here in members:
            process.kill()
            process.join()
            here.close()


def _answer(process: SpawnProcess, told: Connection) -> Any:
    """What the process says next. Raises ConfigError when it cannot work."""
    try:
        said = told.recv()
    except EOFError:
        process.join()
        said = f"a process that ended with exit code {process.exitcode}"
    if isinstance(said, str):
        raise ConfigError(
            [
                Complaint(
                    where="what this machine's cores are worth",
                    expected="processes that measure it with PyTorch",
                    found=said,
                    remedy="Mend that, or give the figure: --cores-worth, or cores_worth in a rates.json.",
                )
            ]
        )
    return said


def _member(told: Connection, cpus: list[int]) -> None:
    """A process: says None when it is ready, then for every beginning (of ``time.monotonic``) what it did."""
    os.sched_setaffinity(0, cpus)
    try:
        piece = _piece()
    except ImportError as error:
        told.send(str(error))
        return
    piece()
    told.send(None)
    while True:
        begin: float = told.recv()
        time.sleep(max(0.0, begin - time.monotonic()))
        busy, pieces = time.process_time(), 0
        while (now := time.monotonic()) < begin + _SECONDS or not pieces:
            piece()
            pieces += 1
        told.send(Done(rate=pieces / (now - begin), had=(time.process_time() - busy) / (now - begin)))


def _piece() -> Callable[[], None]:
    """A piece of the work that is measured, about 15 ms on a core alone. Matrices are those of the toy pair."""
    import torch
    from torch.nn import functional

    torch.set_num_threads(1)
    up, down = torch.rand(128, 512) / 128, torch.rand(512, 128) / 512
    few, many = torch.rand(32, 128), torch.rand(4096, 128)
    wide, back = torch.empty(4096, 512), torch.empty(4096, 128)

    def answer() -> None:
        for token in range(90):
            functional.layer_norm(functional.silu(few @ up) @ down, (128,))
            {row: f"{row}:{token}" for row in range(32)}

    def learn() -> None:
        torch.mm(many, up, out=wide)
        functional.silu(wide, inplace=True)
        torch.mm(wide, down, out=back)
        torch.add(many, back, out=back)

    def both() -> None:
        with torch.inference_mode():
            answer()
            learn()

    return both


if __name__ == "__main__":
    print(measured_cores())
