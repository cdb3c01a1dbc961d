"""What cores are worth to processes that are busy at the same time."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import pytest

from bench import cores
from bench.cores import Cores, Done, compared, measured_cores, whole_cores
from masters_ray.errors import ConfigError
from tests.unit.test_simulation import exactly


class Timed:
    """In place of processes: what each does alone, and what each does beside others, round by round."""

    def __init__(self, alone: Sequence[float], together: Sequence[float], had: float = 1.0) -> None:
        self._alone, self._together, self._had = iter(alone), iter([1.0, *together]), had
        self.asked: list[tuple[int, ...]] = []

    def __call__(self, numbers: Sequence[int]) -> list[Done]:
        self.asked.append(tuple(numbers))
        rate = next(self._alone if len(numbers) == 1 else self._together)
        return [Done(rate=rate, had=self._had) for _ in numbers]


def test_what_two_do_together_is_divided_by_what_one_does_alone() -> None:
    """2 · 80 / 100, 2 · 70 / 100 and, while something else ran, 2 · 30 / 100: the median counts."""
    work = Timed([100, 100, 100], [80, 70, 30])
    found = compared(work, 2, 2, rounds=3)
    assert (found.count, found.worth, found.had) == (2, exactly(1.4), 1.0)
    assert work.asked == [(0, 1), (0,), (0, 1), (1,), (0, 1), (0,), (0, 1)], "a warm-up, then each alone and both"


@pytest.mark.parametrize(
    ("processes", "cpus", "rate", "worth"),
    [
        pytest.param(4, 4, 60, 2.4, id="4 · 0.6"),
        pytest.param(8, 32, 50, 16.0, id="8 · 0.5 of 8; 32 are four times as many"),
        pytest.param(2, 2, 101, 2.0, id="no more than there are"),
        pytest.param(2, 2, 45, 1.0, id="no less than one"),
    ],
)
def test_cores_are_worth_from_one_to_their_number(processes: int, cpus: int, rate: float, worth: float) -> None:
    assert compared(Timed([100], [rate]), processes, cpus, rounds=1).worth == exactly(worth)


@pytest.mark.parametrize(
    ("cpus", "most", "taken"),
    [
        pytest.param([0, 1, 2, 3], 8, [0, 2, 1, 3], id="all"),
        pytest.param([0, 1, 2, 3], 2, [0, 2], id="a whole core"),
        pytest.param([0, 1, 3], 1, [0], id="the other thread of 0 is not ours"),
        pytest.param([3, 1, 0], 2, [0, 1, 3], id="a core is not cut in two"),
    ],
)
def test_of_many_cpus_whole_cores_are_measured(cpus: list[int], most: int, taken: list[int]) -> None:
    """0 and 2 share a core, and so do 1 and 3."""
    assert whole_cores(cpus, most, lambda cpu: [cpu % 2, cpu % 2 + 2]) == taken


@pytest.mark.parametrize(
    ("found", "told"),
    [
        (Cores(count=2, worth=1.604, had=0.99), "2 cores of this machine, worth 1.6 while both are busy"),
        (Cores(count=16, worth=10.24, had=1.0), "16 cores of this machine, worth 10.2 while all are busy"),
        (Cores(count=1, worth=1.0, had=1.0), "1 core of this machine"),
        (
            Cores(count=2, worth=1.1, had=0.6),
            "2 cores of this machine, worth 1.1 while both are busy; unsure, for only 60 % of their time was free for "
            "the measurement: repeat it when nothing else runs",
        ),
    ],
)
def test_a_measurement_says_what_it_is_worth(found: Cores, told: str) -> None:
    assert str(found) == told


def test_this_machine_s_cores_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes at most, so that a large machine takes no longer."""
    two = set(sorted(os.sched_getaffinity(0))[:2])
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: two)
    found = measured_cores(rounds=1)
    assert found.count == len(two) and 1 <= found.worth <= len(two) and 0 < found.had < 1.1


def test_one_cpu_is_worth_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3})
    assert measured_cores() == Cores(count=1, worth=1.0, had=1.0)


@pytest.mark.parametrize(
    ("ends", "told"),
    [(None, "found a process that ended with exit code -9"), ("No module named 'torch'", "found No module named")],
)
def test_processes_that_cannot_work_are_told_of(ends: str | None, told: str) -> None:
    class Gone:
        exitcode = -9

        def join(self) -> None: ...

    class Said:
        def recv(self) -> Any:
            if ends is None:
                raise EOFError
            return ends

    gone: Any = Gone()
    said: Any = Said()
    with pytest.raises(ConfigError, match=f"(?s){told}.*give the figure: --cores-worth"):
        cores._answer(gone, said)
