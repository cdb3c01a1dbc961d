"""What a run with online iterations would take with other shares, replicas and limits (appendix F.2 and F.9).

    online.jsonl, metrics.jsonl, journal.json ─► rates ─► setup ─► model (+ engines) ─► sweep ─► text

Knows no cluster and no model: plain arithmetic, event by event.
"""

from masters_ray.simulation.command import (
    SHARES,
    parse_replicas,
    parse_shares,
    report,
    setup_of,
)
from masters_ray.simulation.model import simulate
from masters_ray.simulation.rates import Rates, measured
from masters_ray.simulation.setup import STUDENT, Call, Outcome, Pool, Setup
from masters_ray.simulation.sweep import Case, spread, sweep
from masters_ray.simulation.text import lines

__all__ = [
    "SHARES",
    "STUDENT",
    "Call",
    "Case",
    "Outcome",
    "Pool",
    "Rates",
    "Setup",
    "lines",
    "measured",
    "parse_replicas",
    "parse_shares",
    "report",
    "setup_of",
    "simulate",
    "spread",
    "sweep",
]
