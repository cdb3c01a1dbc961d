"""Studies around runs: mask ratios (mask_scan), judges (judge_audit), variants of a run (study). In each, rollouts or
runs ─► figures in NAME.json ─► a table for the terminal and an HTML page, both from templates/NAME.*.jinja"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from masters_ray.config import Config, Schedule, ScheduledStage, Written, as_written
from masters_ray.files import as_json, write_json, write_text
from masters_ray.progress import say
from masters_ray.report.render import render


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


def publish(folder: Path, study: str, figures: Mapping[str, Any], table: str = "txt", **drawn: Any) -> Path:
    """Writes a study's figures (STUDY.json), its table (STUDY.``table``), which is also printed, and its page; returns
    the page's path. drawn: further values for the templates."""
    write_json(folder / f"{study}.json", as_json(figures))
    values = {**figures, **drawn}
    text, page = (render(__name__, f"{study}.{ending}.jinja", **values) for ending in (table, "html"))
    write_text(folder / f"{study}.{table}", text)
    say(text.removesuffix("\n"))
    write_text(folder / f"{study}.html", page)
    return folder / f"{study}.html"
