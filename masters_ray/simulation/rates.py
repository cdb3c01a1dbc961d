"""What a run's parts take, measured in the run's directory or given by hand in a file (``rates.json``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

from masters_ray.errors import StoreError
from masters_ray.files import write_json
from masters_ray.simulation.fields import Fields, read_object, read_rows
from masters_ray.simulation.setup import Call, Pool, Setup

STEPS = "metrics.jsonl"
ONLINE = "online.jsonl"
JOURNAL = "journal.json"
_BY_HAND = "Mend the file; masters_ray/simulation/rates.py lists its keys."
_NO_ONLINE = "Measure a run with rollout.online_fraction above 0, or give the rates in a rates.json."


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Costs of a run's parts. As a file: these names, ``calls`` as {"teacher.answer": {"seconds_per_call": 0,
    "seconds_per_question": 0.1}, …} in the order in which a batch makes them."""

    learner_seconds: float
    """Median of an optimizer step, without waiting."""
    offline_step_seconds: float | None
    """The same of the steps of offline iterations alone; None: there was none."""
    online_step_seconds: float | None
    """The same of online iterations."""
    publish_seconds: float
    """Median over the versions handed over."""
    load_seconds: float
    """Median over the versions taken over."""
    start_seconds: float | None
    """What the phase of the learner took beside steps, waiting and publishing; None: it still lasts."""
    calls: tuple[Call, ...]
    """In the order in which a batch makes them."""
    cores_worth: float | None
    """The work that the cores shared by learner and replicas do while all are busy, by that of one alone; None: not
    known. A file may leave it out."""

    @classmethod
    def load(cls, path: Path) -> Rates:
        """What ``save`` wrote, or a person. Raises StoreError, which names file and key."""
        found = read_object(path, _BY_HAND)
        calls = [
            _call(found, name, one.number("seconds_per_call"), one.number("seconds_per_question"))
            for name, one in found.below("calls").items()
        ]
        if not calls:
            raise StoreError(f"{path}: calls: expected at least one call, found none. {_BY_HAND}")
        return cls(
            learner_seconds=found.number("learner_seconds"),
            offline_step_seconds=found.number_or_none("offline_step_seconds"),
            online_step_seconds=found.number_or_none("online_step_seconds"),
            publish_seconds=found.number("publish_seconds"),
            load_seconds=found.number("load_seconds"),
            start_seconds=found.number_or_none("start_seconds"),
            calls=tuple(calls),
            cores_worth=found.number_or_none("cores_worth", least=1) if "cores_worth" in found.content else None,
        )

    def save(self, path: Path) -> None:
        """Whole or not at all; an existing file is replaced."""
        content: dict[str, Any] = {name: value for name, value in vars(self).items() if name != "calls"}
        content["calls"] = {
            call.name: {
                "seconds_per_call": call.seconds_per_call,
                "seconds_per_question": call.seconds_per_question,
            }
            for call in self.calls
        }
        write_json(path, content)

    def setup(
        self,
        *,
        iterations: int,
        online: tuple[int, ...],
        groups_per_step: int,
        batch_rows: int,
        max_staleness: int,
        max_wait_seconds: float,
        pools: Mapping[str, Pool],
        cores: float | None = None,
        colocated: bool = False,
        wake_seconds: float = 0.0,
    ) -> Setup:
        """A run with these rates; one whose start is not known yet counts as started. Raises ConfigError."""
        return Setup(
            iterations=iterations,
            online=online,
            groups_per_step=groups_per_step,
            batch_rows=batch_rows,
            max_staleness=max_staleness,
            max_wait_seconds=max_wait_seconds,
            calls=self.calls,
            pools=pools,
            learner_seconds=self.learner_seconds,
            publish_seconds=self.publish_seconds,
            load_seconds=self.load_seconds,
            start_seconds=self.start_seconds or 0.0,
            cores=cores,
            colocated=colocated,
            wake_seconds=wake_seconds,
        )


def measured(run_dir: Path) -> Rates:
    """The rates of a run that has ended or goes on. Raises StoreError, which names file and remedy, when a file or one
    of its fields is missing, when no iteration was online, and when there is no step but the first, which warms up and
    does not count.

    A call's seconds are the wall's while it was under way. Other calls that shared its replica or its core are in them:
    rates for a simulation that shares both anew should come from a run with one batch under way and idle cores, or
    they are too high.
    """
    again = f"Measure a run that writes it, or give the rates in a {run_dir / 'rates.json'}."
    online = _by_step(read_rows(run_dir / ONLINE, _NO_ONLINE))
    if not online:
        raise StoreError(f"{run_dir / ONLINE}: expected a line for each online iteration, found none. {_NO_ONLINE}")
    steps = _by_step(read_rows(run_dir / STEPS, again))
    counted = {number: row.number("seconds") for number, row in sorted(steps.items())[1:]}
    if not counted:
        raise StoreError(
            f"{run_dir / STEPS}: expected at least two optimizer steps, the first of which warms up, "
            f"found {len(steps)}. Let the run go on."
        )
    phases = read_object(run_dir / JOURNAL, again).below("phases")
    spent = sum(row.number("seconds") + row.number("waited") for row in steps.values())
    spent += sum(row.number("publish_seconds") for row in online.values())
    handed_over = [row for row in online.values() if row.number("version")] or list(online.values())
    return Rates(
        learner_seconds=median(counted.values()),
        offline_step_seconds=_median([seconds for number, seconds in counted.items() if number not in online]),
        online_step_seconds=_median([seconds for number, seconds in counted.items() if number in online]),
        publish_seconds=median(row.number("publish_seconds") for row in handed_over),
        load_seconds=median(row.number("load_seconds") for row in handed_over),
        start_seconds=max(0.0, phases.number("learner") - spent) if "learner" in phases.content else None,
        calls=_calls(list(online.values())),
        cores_worth=None,
    )


def _by_step(rows: Sequence[Fields]) -> dict[int, Fields]:
    """A step that was taken again after a restart counts once, as it was taken last."""
    return {int(row.number("step")): row for row in rows}


def _median(values: Sequence[float]) -> float | None:
    return median(values) if values else None


def _calls(rows: Sequence[Fields]) -> tuple[Call, ...]:
    points: dict[str, list[tuple[float, float, float]]] = {}
    first: dict[str, Fields] = {}
    for row in rows:
        for name, one in row.below("calls").items():
            calls, questions, seconds = one.number("calls"), one.number("questions"), one.number("seconds")
            if calls and questions:
                points.setdefault(name, []).append((calls, questions / calls, seconds / calls))
                first.setdefault(name, row)
    if not points:
        row = rows[0]
        raise StoreError(f"{row.file}: {row.at}.calls: expected a call with questions, found none. {row.remedy}")
    return tuple(_call(first[name], name, *_line(found)) for name, found in points.items())


def _line(points: Sequence[tuple[float, float, float]]) -> tuple[float, float]:
    """(intercept, slope), both at least 0, of the least-squares line through (weight, x, y); through the origin when
    all x are equal."""
    weights = [w for w, _, _ in points]
    mean_x, mean_y = fmean([x for _, x, _ in points], weights), fmean([y for _, _, y in points], weights)
    spread = sum(w * (x - mean_x) ** 2 for w, x, _ in points)
    if spread <= 1e-12 * sum(w * x * x for w, x, _ in points):
        return 0.0, mean_y / mean_x
    slope = sum(w * (x - mean_x) * (y - mean_y) for w, x, y in points) / spread
    if slope < 0:
        return mean_y, 0.0
    if mean_y < slope * mean_x:
        return 0.0, sum(w * x * y for w, x, y in points) / sum(w * x * x for w, x, _ in points)
    return mean_y - slope * mean_x, slope


def _call(found: Fields, name: str, seconds_per_call: float, seconds_per_question: float) -> Call:
    pool, dot, method = name.partition(".")
    if not (pool and dot and method):
        raise StoreError(
            f"{found.file}: {found.at and found.at + '.'}calls: expected names such as teacher.answer, found {name}. "
            f"{found.remedy}"
        )
    return Call(pool=pool, method=method, seconds_per_call=seconds_per_call, seconds_per_question=seconds_per_question)
