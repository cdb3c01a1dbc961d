"""The checks of the pair that a run makes before it spends anything on rollouts."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import get_args

from masters_ray import preflight
from masters_ray.config import Config, HardCheck
from masters_ray.pipeline.journal import Journal
from masters_ray.preflight import Finding, Probe, engine_side
from masters_ray.progress import Doing, say, warn
from masters_ray.records import Problem
from masters_ray.replicas.pool import Pool
from masters_ray.replicas.processes import Role


class Proof:
    """Makes each ``HardCheck`` once per run, but those in run.skip_checks; the journal keeps what they found."""

    def __init__(self, config: Config, journal: Journal) -> None:
        self._config, self._journal = config, journal
        done, skipped = journal.content.get("preflight", {}), config.run.skip_checks
        self._due = [name for name in get_args(HardCheck) if name not in skipped and name not in done]
        if skipped:
            warn(f"checks that are skipped: {', '.join(skipped)}")
        self._probe: Probe | None = None

    def of_learner(self, problems: Sequence[Problem]) -> None:
        """Makes the learner's part, while no engine runs. Raises CheckError when a check fails."""
        if self._due:
            with Doing("the student answers for the checks of the pair"):
                self._probe = probe = preflight.probe(self._config, preflight.chosen(problems))
            self._make({"packing": lambda: engine_side.packing(probe), "export": lambda: engine_side.export(probe)})

    def of_engines(self, config: Config, pools: Mapping[Role, Pool], ratio: float) -> None:
        """Makes the engines' part, which needs the learner's. ratio: the teacher's present one. Raises CheckError."""
        if (probe := self._probe) is None:
            return
        self._probe = None
        teacher, student = pools["teacher"], pools["student"]
        other = next((one for one in engine_side.ratios(config) if one != ratio), ratio)
        self._make(
            {
                "agreement": lambda: engine_side.agreed(config, probe, student, "agreement"),
                "pictures": lambda: engine_side.agreed(config, probe, student, "pictures"),
                "remask": lambda: engine_side.remask(probe, teacher, ratio, other),
            }
        )

    def _make(self, checks: Mapping[str, Callable[[], Finding]]) -> None:
        found = []
        for name, check in checks.items():
            if name in self._due:
                with Doing(f"check {name}", told_from=10):
                    found.append(check())
                say(f"check {name}: {found[-1].verdict}, {found[-1].figure}")
        preflight.refuse_failed(found)
        kept = {one.name: dataclasses.asdict(one) for one in found}
        self._journal.note("preflight", self._journal.content.get("preflight", {}) | kept)
