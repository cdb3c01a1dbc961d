"""Forecasts how long a configuration's run takes at measured rates; needs no cluster and no model library.

online.jsonl, metrics.jsonl, journal.json ─► Rates ─► forecast(config, rates) ─► Forecast ─► ``compared_lines``
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from statistics import fmean

from masters_ray.config import Config
from masters_ray.plan.forecast import Forecast, forecast
from masters_ray.plan.rates import Rates


def compared_lines(
    load: Callable[[Sequence[str]], Config], rates_from: Path | None, fractions: str, replicas: Sequence[str]
) -> Iterator[str]:
    """Yields the table of ``masters-ray simulate``. load: overrides → the configuration. rates_from: a run's directory
    or a rates.json; None: run.dir. fractions: of online iterations, with commas between. replicas: alternatives to the
    configuration's counts, for example ``teacher=2,student=4``."""
    config = load([])
    rates = Rates.load(source := rates_from or Path(config.run.dir))
    choices = [[], *([one.replace("=", ".replicas=") for one in choice.split(",")] for choice in replicas)]
    cases = itertools.product(fractions.split(","), choices)
    found = [forecast(load([f"rollout.online_fraction={fraction}", *choice]), rates) for fraction, choice in cases]
    yield f"rates of {source}, {found[0].steps} iterations, at most {config.rollout.max_staleness} steps behind"
    yield ""
    yield from columns([_cells(one, found[0]) for one in found])


def columns(rows: Sequence[Mapping[str, str]]) -> Iterator[str]:
    """Yields a header line of the keys and a line per row, each column as wide as its widest cell."""
    table = [list(rows[0]), *(list(row.values()) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for cells in table:
        yield "  ".join(cell.rjust(width) for cell, width in zip(cells, widths, strict=True))


def _cells(one: Forecast, first: Forecast) -> dict[str, str]:
    """first: the forecast that "slower" is relative to."""
    return {
        "online": f"{one.online_fraction:.0%}",
        **{pool: str(count) for pool, count in one.replicas.items()},
        "rollouts": str(timedelta(seconds=round(one.rollouts_seconds))),
        "learning": str(timedelta(seconds=round(one.seconds))),
        "slower": f"{one.seconds / first.seconds:.2f} ×",
        "waited": str(timedelta(seconds=round(one.waited_seconds))),
        **{f"{pool} busy": f"{busy:.0%}" for pool, busy in one.pool_busy.items()},
        "mean age": f"{fmean(one.ages):.1f}" if one.ages else "–",
        "fresh": str(len(one.ages)),
        "stored": str(one.late),
    }
