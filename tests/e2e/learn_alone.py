"""A driver of its own that a test can kill: ``python -m tests.e2e.learn_alone FOLDER`` trains on ``FOLDER/rollouts``.

Every step that the worker group reports is printed as a line of JSON.
"""

import dataclasses
import json
import sys
from pathlib import Path

from masters_ray import cluster
from masters_ray.config import Cluster
from masters_ray.learner.job import Report, TakenStep
from masters_ray.learner.trainer import fit
from tests.e2e.learning import STAGES, job

SETTINGS = {"groups_per_step": 1, "checkpoint_every": 2, "cpus": 0.5}


def show(news: Report) -> None:
    if isinstance(news, TakenStep):
        print("STEP " + json.dumps(dataclasses.asdict(news.metrics)), flush=True)
    elif isinstance(news, str):
        print("NOTE " + news, flush=True)


if __name__ == "__main__":
    root = Path(sys.argv[1])
    with cluster.connected(Cluster(local_cpus=4)):
        fit(job(root, **SETTINGS), [root / "rollouts" / f"stage-{stage}" for stage in range(len(STAGES))], show)
