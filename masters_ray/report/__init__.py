"""Writes the report of a run: a single HTML file for readers who know neither the code nor the run. The file is
self-contained: pictures are data URIs, charts are inline SVG, and there is no script. Model answers are untrusted text:
the templates escape every value. The same inputs give the same bytes."""

import base64
import dataclasses
import io
from collections import Counter
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path

from omegaconf import OmegaConf
from PIL import Image

from masters_ray import remarks
from masters_ray.evaluate import wilson
from masters_ray.files import write_text
from masters_ray.records import Event, OnlineStep, SkippedStep, StageOutcome
from masters_ray.report import card, charts, instabilities
from masters_ray.report.render import render
from masters_ray.report.summary import Example, read_examples, read_metrics, read_optional, read_summary

REPORT = "report.html"
MOST_BYTES = 2_000_000  # size above which a page is thinned
_THINNER = ((1000, 0, charts.MANY), (1000, 480, charts.MANY), (8, 320, 300), (4, 240, 200), (1, 160, 100))
"""Tried in turn until a page is small enough: most examples of each sort; most pixels of a picture's longer side, 0 for
those of examples.json; most points of a curve."""


def write(folder: Path) -> Path:
    """Writes a run's ``report.html`` from its summary.json, metrics.jsonl and examples.json, and from events.jsonl and
    skipped.jsonl where there are any; returns its path. Raises StoreError, naming file and remedy, when a file is
    missing, unreadable or lacks a value; an existing report then stays. A page of more than MOST_BYTES is thinned.
    Writes the model cards, too (``card``)."""
    summary, metrics, examples = read_summary(folder), read_metrics(folder), read_examples(folder)
    online = read_optional(folder, "online.jsonl", OnlineStep)
    values = {
        "name": Path(summary.dir).name or summary.dir,
        "summary": summary,
        "all_set_aside": sum(sum(stage.set_aside.values()) for stage in summary.stages),
        "remarks": remarks,
        "wilson": wilson,
        "all_examples": examples,
        "metrics": metrics,
        "events": read_optional(folder, "events.jsonl", Event),
        "skipped": read_optional(folder, "skipped.jsonl", SkippedStep),
        "spikes": instabilities.find_spikes(metrics),
        "collapse": instabilities.collapse(metrics),
        "risen": instabilities.rise_of_zero_std(metrics),
        "online": online,
        "work": _work([*summary.stages, *online]),
        "charts": charts,
        "setting": partial(OmegaConf.select, OmegaConf.create(summary.config)),
    }
    curves = {points: cache(partial(charts.curve_chart, metrics, points=points)) for *_, points in _THINNER}
    for most, pixels, points in _THINNER:
        shown = [_smaller(one, pixels) for one in _some(examples, most)]
        own = {"examples": shown, "curve": curves[points], "pixels": pixels, "points": points}
        page = render(__package__, "report.html.jinja", **values, **own)
        if len(page.encode("utf-8", "replace")) <= MOST_BYTES:
            break
    write_text(folder / REPORT, page)
    card.write(folder, summary, metrics)
    return folder / REPORT


def _work(made: Sequence[StageOutcome | OnlineStep]) -> dict[str, Counter[str]]:
    """Returns "pool.method" → its sums over the rollouts of all stages and online iterations, as they noted them."""
    sums: dict[str, Counter[str]] = {}
    for name, of_call in (item for one in made for item in one.calls.items()):
        sums.setdefault(name, Counter()).update(of_call)
    return sums


def _some(examples: Sequence[Example], most: int) -> list[Example]:
    """Returns at most ``most`` examples of each sort."""
    sorts = ([one for one in examples if bool(one.answers) == learned] for learned in (True, False))
    return [one for of_sort in sorts for one in of_sort[:most]]


def _smaller(example: Example, pixels: int) -> Example:
    """Returns the example with pictures whose longer side has at most ``pixels``; 0: as they are."""

    def smaller(uri: str) -> str:
        if not pixels or not uri.startswith("data:image/"):
            return uri
        with Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) as picture:
            picture.thumbnail((pixels, pixels))
            content = io.BytesIO()
            picture.convert("RGB").save(content, "JPEG", quality=80)
        return f"data:image/jpeg;base64,{base64.b64encode(content.getvalue()).decode()}"

    return dataclasses.replace(example, pictures=[smaller(uri) for uri in example.pictures])
