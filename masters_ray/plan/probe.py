"""Measures rates by a small run of the same configuration on its own data and devices."""

from pathlib import Path

from masters_ray import cluster
from masters_ray.config import Config
from masters_ray.method import schedule
from masters_ray.pipeline import run
from masters_ray.pipeline.run_dir import RunDirectory
from masters_ray.progress import say

_BATCHES = 6  # batches of a stage before learning: enough to keep all replicas busy after the first, which warm up
_HELD_OUT = 256
_LEAST_ONLINE = 0.2


def words(config: Config, online_fraction: float) -> list[str]:
    """Returns the overrides that make the probe of a configuration: two stages, the first teacher, and enough questions
    for six batches of a stage and four optimizer steps. online_fraction: of the shares to forecast, the largest; what
    shares the machine with the learner is measured at that share, or at a fifth, which needs ten steps."""
    online = max(online_fraction, _LEAST_ONLINE) if online_fraction else 0.0
    stages, steps = 2, 10 if online else 4
    rows = max(stages * _BATCHES * config.rollout.batch_rows, steps * config.learner.groups_per_step)
    first = schedule.ratios(config.schedule)[0][0]
    return [
        f"run.dir={Path(config.run.dir) / 'plan' / (f'probe-{online:g}' if online else 'probe')}",
        f"data.train_rows={rows}",
        f"data.held_out_rows={min(config.data.held_out_rows or _HELD_OUT, _HELD_OUT)}",
        "data.order=seeded",
        f"schedule.stages=[{{ratio: {first:g}}}, {{ratio: 0.0}}]",
        "growth=[]",
        f"rollout.online_fraction={online:g}",
        "rollout.student_refresh=run",
        "rollout.store=null",
        "rollout.reuse=[]",
        "evaluation.examples=0",
        "tracker=[]",
    ]


def measure(config: Config, config_file: str) -> Path:
    """Executes the probe's run, or opens it when it was made before. Returns its directory."""
    directory = RunDirectory(config)
    if directory.finished:
        say(f"{directory.root} holds a probe of this configuration; delete it to measure anew")
        return directory.root
    with directory.locked(), cluster.connected(config.cluster):
        run.run(config, directory, config_file, cluster.place(config))
    return directory.root
