"""Studies around runs: mask ratios (mask_scan), judges (judge_audit), variants of a run (study). In each, rollouts or
runs ─► figures in NAME.json ─► a table for the terminal and an HTML page, both from templates/NAME.*.jinja"""

import shlex
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from masters_ray.config import Config, Schedule, ScheduledStage, Written, as_written, to_yaml
from masters_ray.errors import MastersError
from masters_ray.files import as_json, write_json, write_text
from masters_ray.pipeline.outcome import versions
from masters_ray.plan.forecast import Forecast, cores_of, forecast
from masters_ray.plan.rates import Rates
from masters_ray.progress import say, warn
from masters_ray.records import Event
from masters_ray.report.render import duration, render
from masters_ray.report.summary import METRICS, read_optional


def sample(config: Config, name: str, questions: int, ratios: Sequence[float]) -> Config:
    """Returns the configuration of a study's rollouts: each ratio is a stage over the same questions, all are answered
    before training, and cut answers never stop it. All of it, stores too, is below run.dir in ``name``-``questions``,
    so that nothing of the run itself is touched."""
    name = f"{name}-{questions}"
    own = Written(str(Path(config.run.dir) / name), f"{as_written(config.run.dir)}/{name}")
    return replace(
        config,
        run=replace(config.run, dir=own),
        data=replace(config.data, train_rows=questions),
        schedule=Schedule(stages=[ScheduledStage(ratio=ratio) for ratio in ratios], stage_data="all"),
        rollout=replace(config.rollout, student_refresh="run", online_fraction=0.0, max_cut_share=1.0, store=None),
        growth=[],
    )


def told_time(runs: Iterable[Path], seconds: Callable[[Rates], float]) -> str:
    """Says how long something takes at the rates of the first of the runs, or of its probe, that has the rates which
    ``seconds`` asks for; otherwise how to measure some."""
    for place in (place for run in runs for place in (run, *sorted(run.glob("plan/probe*")))):
        if (place / METRICS).is_file():
            try:
                time = duration(seconds(Rates.load(place)))
                return f"about {time} at the rates of {place}; what is there is not made again"
            except MastersError as error:
                warn(f"no rates of {place}: {error}")
    return "no rates are known to say how long that takes: masters-ray plan --probe measures them"


def sample_seconds(config: Config, rates: Rates) -> float:
    """Returns the seconds of a sample's rollouts with all that is around them. config: from ``sample``."""
    made = forecast(config, rates, config.data.train_rows or 0, 0, cores_of(config))
    return before_learning(made) + sum(rates.once.values())


def before_learning(made: Forecast) -> float:
    """Returns the seconds that a run spends on its rollouts and its untrained models."""
    return sum(made.phases[name].seconds for name in ("start of the engines", "evaluation before", "rollouts"))


def publish(folder: Path, study: str, config: Config, figures: Mapping[str, Any], **drawn: Any) -> Path:
    """Writes a study's figures with its headline (STUDY.json), its table (STUDY.txt or .md), and its page with command,
    versions and ``config``; returns the page's path. drawn: further values for the templates; quiet: do not print the
    table."""
    command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
    made_by = {"command": command, "versions": dict(versions()), "yaml": to_yaml(config), "config": config}
    events = read_optional(Path(config.run.dir), "events.jsonl", Event)
    values = {**made_by, "events": events, **drawn, **figures}
    values["headline"] = " ".join(render(__name__, f"{study}.headline.jinja", **values).split())
    text, page = (render(__name__, f"{study}.{name}.jinja", **values) for name in ("table", "html"))
    write_json(folder / f"{study}.json", as_json({**figures, "headline": values["headline"]}))
    write_text(folder / f"{study}.{'md' if study == 'study' else 'txt'}", text)
    if not drawn.get("quiet"):
        say(text.removesuffix("\n"))
    write_text(folder / f"{study}.html", page)
    return folder / f"{study}.html"
