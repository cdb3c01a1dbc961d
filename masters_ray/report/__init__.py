"""The report of one run: a single HTML file that explains itself, for a reader who has seen neither code nor run.

    summary.json ─┐
    metrics.jsonl ─┼─► inputs (typed records) ─► page (values, charts) ─► templates/report.html.jinja ─► report.html
    examples.json ─┘

The file needs nothing beside itself: pictures are data URIs, charts are inline SVG, there is no script. Model answers
are untrusted text; the templates escape every value. The same inputs give the same bytes.
"""

from __future__ import annotations

from pathlib import Path

from masters_ray.files import write_text
from masters_ray.report.inputs import EXAMPLES, METRICS, SUMMARY, read_examples, read_metrics, read_summary
from masters_ray.report.page import run_page

REPORT = "report.html"

__all__ = ["EXAMPLES", "METRICS", "REPORT", "SUMMARY", "write"]


def write(run_dir: Path) -> Path:
    """Write ``report.html`` into ``run_dir`` from its summary.json, metrics.jsonl and examples.json; returns its path.

    An existing report is replaced in one step. Raises StoreError, naming the file and the remedy, when an input is
    missing, unreadable or lacks a value.
    """
    summary = read_summary(run_dir / SUMMARY)
    metrics = read_metrics(run_dir / METRICS)
    examples = read_examples(run_dir / EXAMPLES)
    write_text(run_dir / REPORT, run_page(summary, metrics, examples))
    return run_dir / REPORT
