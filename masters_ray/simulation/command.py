"""What ``masters-ray simulate`` shows: a configuration's run at measured rates, the paper's at the paper's."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from masters_ray import schedule
from masters_ray.config import Config
from masters_ray.errors import Complaint, ConfigError
from masters_ray.simulation.paper import table
from masters_ray.simulation.rates import ONLINE, Rates, measured
from masters_ray.simulation.setup import STUDENT, Call, Pool, Setup
from masters_ray.simulation.sweep import spread, sweep
from masters_ray.simulation.text import lines, paper_lines

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
) -> Iterator[str]:
    """The lines to show. rates_from: a run's directory or a rates.json; default: run.dir, if it has online iterations.
    questions: of the run, where data.train.rows does not say. dedicated: learner and replicas share no cores.

    Raises ConfigError or StoreError when rates or the number of questions are not known.
    """
    source = rates_from or Path(config.run.dir)
    if rates_from is None and not (source / ONLINE).is_file():
        raise ConfigError(
            [
                Complaint(
                    where="--rates",
                    expected="a run with online iterations, or a rates.json",
                    found=f"nothing, and {source} has no {ONLINE}",
                    remedy="Name one: a short run with rollout.online_fraction=0.2 and rollout.max_staleness=0.",
                )
            ]
        )
    rates = measured(source) if source.is_dir() else Rates.load(source)
    base = setup_of(config, rates, questions, dedicated=dedicated)
    yield f"rates of {source}, {base.iterations} iterations, at most {base.max_staleness} steps behind"
    yield ""
    yield from lines(sweep(base, shares, replicas))


def paper_report() -> Iterator[str]:
    """The paper's set-up of 256 GPUs (appendix F.2 and F.9)."""
    yield from paper_lines(table())


def setup_of(config: Config, rates: Rates, questions: int | None = None, *, dedicated: bool = False) -> Setup:
    """A configuration's run with these rates. Raises ConfigError when the number of its questions is not known."""
    rows = questions or config.data.train.rows
    if rows is None:
        raise ConfigError(
            [
                Complaint(
                    where="data.train.rows",
                    expected="a number of questions",
                    found="none",
                    remedy="Set it, or give --questions.",
                )
            ]
        )
    size = config.learner.groups_per_step
    iterations = len(schedule.iterations(schedule.plan(config.schedules, rows), size, 0.0))
    alone = dedicated or config.learner.gpus + config.teacher.gpus + config.student.gpus > 0
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
        cores=None if alone else float(os.cpu_count() or 1),
        colocated=config.rollout.placement == "turns",
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
