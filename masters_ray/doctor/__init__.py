"""``masters-ray doctor``: proves a configuration's pair and data on this machine, before a night is spent on them.

files, tokens, prompts, machine ─► learner's part ─► engines' part ─► Findings ─► table, doctor.json, doctor.html
"""

import dataclasses
import shutil
import tempfile
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path

from masters_ray import cluster, preflight
from masters_ray.checks import pair
from masters_ray.checks.context import CheckContext
from masters_ray.config import Config, read
from masters_ray.doctor.quick import FILES, MACHINE, NEEDS
from masters_ray.errors import Complaint, ConfigError, MastersError
from masters_ray.files import write_json, write_text
from masters_ray.models import weights
from masters_ray.preflight import ABOUT, Finding, engine_side, learner_side
from masters_ray.progress import Doing, say
from masters_ray.replicas import processes
from masters_ray.replicas.spawn import Replicas
from masters_ray.replicas.spec import specs
from masters_ray.report.render import render

MODELS = ("packing", "export", "agreement", "pictures", "masks", "teacher", "remask", "judge", "reload")
"""Checks that load the models."""
_MOST_RATIOS = 2e9  # parameters of a teacher up to which each ratio is compared; of a larger one the largest and 0 are


class Doctor:
    """Makes the checks in order; a later check that needs what an earlier one has not proven is not done."""

    def __init__(self, context: CheckContext, skip: Collection[str]) -> None:
        self._context, self._skip = context, skip
        self.findings: dict[str, Finding] = {}

    def examine(self) -> None:
        """Fills ``findings``. Raises nothing that a check can tell."""
        for name, check in FILES.items():
            self._make(name, partial(check, self._context), needs=NEEDS.get(name, ("data",)))
        for name, check in MACHINE.items():
            self._make(name, partial(check, self._context))
        if self._left(MODELS) and not self._failed("checkpoints", "data", "vocabulary", "memory"):
            with cluster.connected(self._context.config.cluster):
                cluster.place(self._context.config)
                self._models(self._context.config)
        for name in MODELS:
            self._make(name, partial(_not_done, name, "a check before it failed"))

    def _models(self, config: Config) -> None:
        problems = preflight.chosen(self._context.loaded["train"])
        probe = None
        try:
            probe = preflight.probe(config, problems)
        except MastersError as error:
            self._make("packing", partial(_raise, error))
            return
        self._make("packing", lambda: engine_side.packing(probe))
        self._make("export", lambda: engine_side.export(probe))
        ratios = engine_side.ratios(config)
        if weights.parameter_count(self._context.folders["teacher"]) > _MOST_RATIOS:
            ratios = sorted({max(ratios), 0.0}, reverse=True)
        masked = {}
        if self._left(["teacher"]):
            for ratio in ratios:
                masked[ratio] = learner_side.masked_logprobs(config, ratio, probe.problems, probe.answers)
        wanted = specs(config, processes.for_rollouts(config, learned=False), ratios[0])
        try:
            replicas = Replicas([dataclasses.replace(one, count=1) for one in wanted])
        except MastersError as error:
            self._make("agreement", partial(_raise, error))
            return
        with replicas:
            pools = replicas.pools
            student, teacher, folder = pools["student"], pools["teacher"], self._context.folders["teacher"]
            self._make("agreement", lambda: engine_side.agreed(config, probe, student, "agreement"))
            self._make("pictures", lambda: engine_side.agreed(config, probe, student, "pictures"), needs=("agreement",))
            self._make("masks", lambda: engine_side.masks(config, folder, teacher, max(ratios)))
            self._make("teacher", lambda: engine_side.teacher(config, probe, teacher, masked))
            self._make("remask", lambda: engine_side.remask(probe, teacher, ratios[0], ratios[-1]))
            if "judge" in pools:
                self._make("judge", lambda: engine_side.judge(config, self._context.loaded["train"], pools["judge"]))
        self._make("judge", partial(_not_done, "judge", "a rule judges"))
        self._make("reload", partial(self._reload, config, probe), needs=("export", "agreement"))

    def _reload(self, config: Config, probe: learner_side.Probe) -> Finding:
        folder = learner_side.exported(config, _folder(config).absolute() / "student")
        try:
            wanted = specs(config, [dataclasses.replace(processes.for_measuring(config)[0], count=1)], student=folder)
            with Replicas(wanted) as replicas:
                return engine_side.agreed(config, probe, replicas.pools["student"], "reload")
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _make(self, name: str, check: Callable[[], Finding], needs: Collection[str] = ()) -> None:
        if name in self.findings:
            return
        if name in self._skip:
            found = Finding(name=name, verdict="not done", figure="skipped")
        elif failed := self._failed(*needs):
            found = Finding(name=name, verdict="not done", figure=f"it needs {', '.join(failed)}")
        else:
            try:
                with Doing(f"check {name}", told_from=10):
                    found = check()
            except (MastersError, OSError) as error:
                found = Finding(name=name, verdict="failed", figure=str(error), remedy="Mend what it names.")
        self.findings[name] = found
        say(line(found))

    def _failed(self, *names: str) -> list[str]:
        return [name for name in names if name in self.findings and self.findings[name].verdict == "failed"]

    def _left(self, names: Collection[str]) -> list[str]:
        return [name for name in names if name not in self._skip and name not in self.findings]


def _folder(config: Config) -> Path:
    return Path(config.run.dir) / "doctor"


def _not_done(name: str, why: str) -> Finding:
    return Finding(name=name, verdict="not done", figure=why)


def _raise(error: MastersError) -> Finding:
    raise error


def line(found: Finding) -> str:
    """Formats a finding for the terminal."""
    mark = {"passed": "ok    ", "failed": "FAILED", "not done": "–     "}[found.verdict]
    remedy = f"\n{'':24}{found.remedy}" if found.verdict == "failed" else ""
    return f"{mark}  {found.name:14}  {found.figure}{remedy}"


def examine(file: str | Path, overrides: list[str], skip: Collection[str]) -> tuple[int, Path]:
    """Makes all checks but ``skip``, prints them, and writes doctor.json and doctor.html below run.dir. Returns how
    many failed, and the page's path. Raises ConfigError for a configuration that cannot be read."""
    if unknown := sorted(set(skip) - ABOUT.keys()):
        raise ConfigError([Complaint("--skip", f"names of checks: {', '.join(ABOUT)}", ", ".join(unknown))])
    config, complaints = read(file, overrides)
    if complaints:
        raise ConfigError(complaints)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        context = CheckContext(config=config, complaints=[], scratch=Path(scratch))
        pair.located(context)
        if context.complaints:
            raise ConfigError(context.complaints)
        doctor = Doctor(context, skip)
        doctor.examine()
    found = list(doctor.findings.values())
    folder = _folder(config)
    write_json(folder / "doctor.json", [dataclasses.asdict(one) for one in found])
    page = render(__name__, "doctor.html.jinja", name=str(file), findings=found, about=ABOUT, config=config)
    write_text(folder / "doctor.html", page)
    return sum(one.verdict == "failed" for one in found), folder / "doctor.html"
