"""What a run with online iterations would take with other shares, replicas and limits (appendix F.2 and F.9).

    online.jsonl, metrics.jsonl, journal.json ─► rates ─┬► setup ─► model (+ engines) ─► sweep ─► text
                                 this machine ─► cores ─┘                                 │
                                   the paper's own rates ─► paper ────────────────────────┘

Knows no cluster and no model: plain arithmetic, event by event. Only ``cores`` measures.
"""

from masters_ray.simulation.command import (
    SHARES,
    paper_report,
    parse_replicas,
    parse_shares,
    report,
    setup_of,
)
from masters_ray.simulation.cores import Cores, measured_cores
from masters_ray.simulation.model import simulate
from masters_ray.simulation.paper import Assumed, Row, table
from masters_ray.simulation.rates import Rates, measured
from masters_ray.simulation.setup import STUDENT, Call, Outcome, Pool, Setup
from masters_ray.simulation.sweep import Case, spread, sweep
from masters_ray.simulation.text import lines, paper_lines

__all__ = [
    "SHARES",
    "STUDENT",
    "Assumed",
    "Call",
    "Case",
    "Cores",
    "Outcome",
    "Pool",
    "Rates",
    "Row",
    "Setup",
    "lines",
    "measured",
    "measured_cores",
    "paper_lines",
    "paper_report",
    "parse_replicas",
    "parse_shares",
    "report",
    "setup_of",
    "simulate",
    "spread",
    "sweep",
    "table",
]
