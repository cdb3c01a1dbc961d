"""What ``masters-ray simulate`` shows: a configuration's run at measured rates."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from masters_ray import schedule
from masters_ray.config import Config
from masters_ray.errors import Complaint, ConfigError
from masters_ray.simulation.rates import ONLINE, Rates, measured
from masters_ray.simulation.setup import STUDENT, Call, Pool, Setup
from masters_ray.simulation.sweep import spread, sweep
from masters_ray.simulation.text import lines

SHARES = (0.0, 0.05, 0.1, 0.2, 0.5, 1.0)
_STAYING = "reference"
"""The processes whose weights stay those before training: reference policy and, mostly, the judge."""


def report(
    config: Config,
    rates_from: Path | None = None,
    questions: int | None = None,
    shares: Sequence[float] = SHARES,
    replicas: Sequence[Mapping[str, int]] = ({},),
    dedicated: bool = False,
    cores_worth: float | None = None,
) -> Iterator[str]:
    """The lines to show. rates_from: a run's directory or a rates.json; default: run.dir, if it has online iterations.
    questions: of the run, where data.train.rows does not say. dedicated: learner and replicas share no cores.
    cores_worth: what those that they share are worth (``Setup.cores``); default: what the rates.json says.

    Raises ConfigError or StoreError when rates, the number of questions or what cores are worth are not known.
    """
    source = rates_from or Path(config.run.dir)
    if rates_from is None and not (source / ONLINE).is_file():
        raise _refused(
            "--rates",
            "a run with online iterations, or a rates.json",
            f"nothing, and {source} has no {ONLINE}",
            "Name one: a short run with rollout.online_fraction=0.2 and rollout.max_staleness=0.",
        )
    rates = measured(source) if source.is_dir() else Rates.load(source)
    base = setup_of(config, rates, questions, cores=None)
    alone = "--dedicated" if dedicated else "a configuration with GPUs" if not shares_cores(config) else None
    worth, told = _nothing_shared(alone, cores_worth) if alone else _shared(source, rates, cores_worth)
    cases = sweep(dataclasses.replace(base, cores=worth), shares, replicas)
    yield f"rates of {source}, {base.iterations} iterations, at most {base.max_staleness} steps behind"
    yield told
    yield ""
    yield from lines(cases)


def parse_shares(text: str) -> list[float]:
    """Of the command line: fractions with commas between. Raises ConfigError."""
    try:
        shares = [float(word) for word in text.split(",")]
    except ValueError:
        shares = [-1.0]
    if not all(0 <= share <= 1 for share in shares):
        expected = "fractions from 0 to 1 with commas between"
        raise _refused("--shares", expected, text or "nothing", "Write for instance 0,0.2,1.")
    return shares


def parse_replicas(text: str) -> dict[str, int]:
    """Of the command line: numbers of replicas by pool. Raises ConfigError.

    Example: ``teacher=2,student=4``.
    """
    pairs = [pair.partition("=") for pair in text.split(",")]
    replicas = {name.strip(): int(count) for name, _, count in pairs if count.strip().isdecimal()}
    if len(replicas) < len(pairs) or not all(replicas.values()):
        expected = "pools, each once and with 1 replica or more, with commas between"
        raise _refused("--replicas", expected, text or "nothing", "Write for instance teacher=2,student=4.")
    return replicas


def shares_cores(config: Config) -> bool:
    """Whether learner and replicas work on the same CPUs: none of them has a GPU."""
    return config.learner.gpus + config.teacher.gpus + config.student.gpus == 0


def setup_of(config: Config, rates: Rates, questions: int | None = None, *, cores: float | None) -> Setup:
    """A configuration's run with these rates. cores: what those that learner and replicas share are worth; None: they
    share none. Raises ConfigError when the number of its questions is not known, or below 1."""
    rows = config.data.train.rows if questions is None else questions
    if rows is None:
        raise _refused("data.train.rows", "a number of questions", "none", "Set it, or give --questions.")
    if rows < 1:
        raise _refused("--questions", "1 or more", str(rows), "Leave it out to take data.train.rows.")
    size = config.learner.groups_per_step
    iterations = len(schedule.iterations(schedule.plan(config.schedules, rows), size, 0.0))
    return Setup(
        iterations=iterations,
        online=spread(iterations, config.rollout.online_fraction),
        groups_per_step=size,
        batch_rows=config.rollout.batch_rows,
        max_staleness=config.rollout.max_staleness,
        max_wait_seconds=config.rollout.max_wait_seconds,
        calls=tuple(_of_process(config, call) for call in rates.calls),
        pools={
            "teacher": Pool(replicas=config.teacher.replicas),
            STUDENT: Pool(replicas=config.student.replicas),
            _STAYING: Pool(replicas=config.judge.replicas),
        },
        learner_seconds=rates.learner_seconds,
        publish_seconds=rates.publish_seconds,
        load_seconds=rates.load_seconds,
        start_seconds=rates.start_seconds or 0.0,
        cores=cores,
        colocated=config.rollout.placement == "turns",
    )


def _nothing_shared(why: str, given: float | None) -> tuple[None, str]:
    """Raises ConfigError when a figure is given all the same."""
    if given is None:
        return None, "learner and replicas share no cores"
    raise _refused("--cores-worth", "a learner and replicas that share cores", why, "Leave it out.")


def _shared(source: Path, rates: Rates, given: float | None) -> tuple[float, str]:
    """(What the cores are worth, the line that says so.)"""
    if given is not None:
        if not (math.isfinite(given) and given >= 1):
            remedy = "Give for instance 1.6, or nothing, to have it measured."
            raise _refused("--cores-worth", "a number of 1 or more", f"{given:g}", remedy)
        return given, f"shared cores, worth {given:g} while all are busy (--cores-worth)"
    if rates.cores_worth is not None:
        return rates.cores_worth, f"shared cores, worth {rates.cores_worth:g} while all are busy ({source})"
    raise _refused(
        "--cores-worth",
        "what the cores that learner and replicas share are worth while all are busy, by the work of one",
        "nothing",
        "Measure it on that machine with python -m bench.cores, or say --dedicated if they share none.",
    )


def _of_process(config: Config, call: Call) -> Call:
    """The call of the process that plays the role."""
    if call.pool != "judge":
        return call
    pool = STUDENT if config.judge.follows_student else _STAYING
    return Call(
        pool=pool,
        method=call.method,
        seconds_per_call=call.seconds_per_call,
        seconds_per_question=call.seconds_per_question,
    )


def _refused(where: str, expected: str, found: str, remedy: str) -> ConfigError:
    return ConfigError([Complaint(where=where, expected=expected, found=found, remedy=remedy)])
