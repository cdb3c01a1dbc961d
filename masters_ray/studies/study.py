"""Studies: run the variants of a configuration with several seeds each, and compare their accuracies. A study is a YAML
file (conf/study): a base configuration, changes for all runs, and further changes for each variant. Runs are ordinary
ones in DIR/VARIANT/seed-S. Finished runs are not repeated. Runs that differ only in how they learn share rollouts and
the accuracies of the untrained models; other runs reuse rows made by the same recipe."""

import dataclasses
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, ClassVar

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import AfterValidator, ConfigDict, TypeAdapter, ValidationError

from masters_ray import checks, cluster
from masters_ray import config as configuration
from masters_ray.config import Config
from masters_ray.config.load import leaves
from masters_ray.errors import Complaint, ConfigError
from masters_ray.evaluate import Interval
from masters_ray.files import read_record, write_json
from masters_ray.pipeline import held_out
from masters_ray.pipeline.run import run as make_run
from masters_ray.pipeline.run_dir import RunDirectory
from masters_ray.progress import say
from masters_ray.report import charts
from masters_ray.report.summary import read_metrics, read_summary
from masters_ray.studies import publish, runs
from masters_ray.studies.statistics import mean, resampled_share

Changes = Annotated[dict[str, Any], AfterValidator(lambda tree: dict(leaves(tree)))]
"""Dotted key → value; the file may have nested or dotted keys."""
_TIME = "%Y-%m-%d %H:%M:%S UTC"


@dataclass(frozen=True, kw_only=True)
class Study:
    __pydantic_config__: ClassVar = ConfigDict(extra="forbid")

    file: str = ""
    base: str
    dir: Path
    seeds: tuple[int, ...]
    changes: Changes = dataclasses.field(default_factory=dict)
    reference: str  # name of the variant that the others are compared with
    variants: dict[str, Changes]

    def __post_init__(self) -> None:
        if not 0 < len(self.seeds) == len(set(self.seeds)):
            raise ValueError("seeds must be different whole numbers such as [0, 1, 2]")
        if self.reference not in self.variants:
            raise ValueError(f"reference must be one of {', '.join(self.variants)}")
        if len({_folder(name) for name in self.variants} - {""}) < len(self.variants):
            raise ValueError("variants must have names that differ in letters and digits")


@dataclass(frozen=True, kw_only=True)
class VariantOutcome:
    """A variant's means over its seeds. Accuracies are the trained student's on held-out questions, as fractions."""

    name: str
    changes: dict[str, Any]
    before: Interval  # of the untrained student
    teacher: Interval
    accuracies: list[float]
    accuracy: Interval
    gain_by_question: Interval  # mark minus the untrained student's, resampled as ``difference_by_question``
    difference: Interval  # accuracy minus the reference's with the same seed
    difference_by_question: Interval
    """Mark minus the reference's on the same question with the same seed; resamples whole questions, with all their
    seeds. NaN: no question was asked of both."""
    jsd: Interval  # mean over the last tenth of the steps, nats
    seconds: Interval  # wall time of the learner's phase
    waited: Interval  # part of ``seconds`` in which the learner waited for online rollouts


def read(file: str) -> Study:
    """Reads a study from a YAML file. Raises ConfigError, which names every wrong key."""
    try:
        content = OmegaConf.to_container(OmegaConf.load(file))
        return dataclasses.replace(TypeAdapter(Study).validate_json(json.dumps(content), strict=True), file=file)
    except (OSError, ValueError, yaml.YAMLError, OmegaConfBaseException) as error:
        told = " ".join(str(error).split())
        if isinstance(error, ValidationError):
            told = "; ".join(": ".join([*map(str, one["loc"]), one["msg"]]) for one in error.errors())
        raise ConfigError([Complaint(file, "a study in YAML", told, "conf/study has examples.")]) from error


def run(study: Study) -> Path:
    """Makes every unfinished run of a study; returns the path of its page, which is there from the start. Raises
    ConfigError before anything starts when a run's configuration is wrong, and the first MastersError of a run."""
    configs, told = dict(_configs(study)), dict[runs.Place, str]()
    todo = [place for place, config in configs.items() if not RunDirectory(config).finished]
    if todo:
        say(runs.cost(configs, Path(configuration.load(study.base).run.dir)))
        say(f"page {drawn(study, configs, told)()}")
        with cluster.connected(configs[todo[0]].cluster):
            for number, place in enumerate(todo, 1):
                say(f"run {number} of {len(todo)}: {place[0]}, seed {place[1]}")
                told[place] = f"running since {datetime.now(UTC):{_TIME}}"
                (write := drawn(study, configs, told))()
                with runs.shown(write, told, place):
                    _make(place, configs, study.base)
    return drawn(study, configs, told)()


def outcomes(study: Study, configs: Mapping[runs.Place, Config]) -> list[VariantOutcome]:
    """Raises StoreError when a file of a finished run is missing or damaged."""
    folders = {name: [Path(configs[name, seed].run.dir) for seed in study.seeds] for name in study.variants}
    summaries = {name: list(map(read_summary, own)) for name, own in folders.items()}
    accuracies = {name: [one.accuracy.student_after.value for one in own] for name, own in summaries.items()}
    correct = {name: [_correct(folder, "student_after") for folder in own] for name, own in folders.items()}
    found = []
    for name, changes in study.variants.items():
        untrained = [_correct(folder, "student_before") for folder in folders[name]]
        pairs = zip(accuracies[name], accuracies[study.reference], strict=True)
        found.append(
            VariantOutcome(
                name=name,
                changes=changes,
                before=mean([one.accuracy.student_before.value for one in summaries[name]]),
                teacher=mean([one.accuracy.teacher.value for one in summaries[name]]),
                accuracies=accuracies[name],
                accuracy=mean(accuracies[name]),
                gain_by_question=_by_question(correct[name], untrained),
                difference=mean([own - other for own, other in pairs]),
                difference_by_question=_by_question(correct[name], correct[study.reference]),
                jsd=mean(list(map(_last_jsd, folders[name]))),
                seconds=mean([one.phases["learner"] for one in summaries[name]]),
                waited=mean([sum(step.rollout_wait_s for step in read_metrics(folder)) for folder in folders[name]]),
            )
        )
    return found


def drawn(study: Study, configs: Mapping[runs.Place, Config], told: Mapping[runs.Place, str]) -> Callable[[], Path]:
    """Compares the variants whose runs, and the reference's, are all finished. Returns what writes figures, table and
    page with the runs' states of the time. told: as for ``runs.states``."""
    done = {name for name in study.variants if all(runs.finished(configs[name, seed]) for seed in study.seeds)}
    complete = {name: changes for name, changes in study.variants.items() if {name, study.reference} <= done}
    found = outcomes(dataclasses.replace(study, variants=complete), configs) if complete else []
    values = {
        "name": study.dir.name,
        "several": len(study.seeds) > 1,
        "waited": any(one.waited.value > 0 for one in found),
        "charts": charts,
        "kept": dict[str, str](),  # charts that the page has drawn
    }

    def write() -> Path:
        states, now = runs.states(configs, told), f"{datetime.now(UTC):{_TIME}}"
        unfinished = sum(one["state"] != "finished" for one in states)
        figures = {"study": study, "outcomes": found, "runs": states, "unfinished": unfinished}
        stopped = any(one["state"].startswith("failed") for one in states)
        again = values | {"now": now, "refresh": unfinished and not stopped, "quiet": unfinished > 0}
        return publish(study.dir, "study", configs[study.reference, study.seeds[0]], figures, **again)

    return write


def _correct(folder: Path, model: str) -> dict[str, int]:
    """Returns the id of a held-out question → 1 if the model's answer is right, otherwise 0."""
    marks = held_out.read_marks(folder / "evaluation" / f"{model}.json")
    return {mark.id: int(mark.correct) for mark in marks if not mark.refused}


def _by_question(own: Iterable[dict[str, int]], others: Iterable[dict[str, int]]) -> Interval:
    """Returns the mean difference of marks (one ``_correct`` per seed) on the questions of both."""
    seeds = zip(own, others, strict=True)
    gains = [(one[id] - other[id], id) for one, other in seeds for id in one.keys() & other.keys()]
    return resampled_share([gain for gain, _ in gains], [id for _, id in gains], -1.0)


def _last_jsd(folder: Path) -> float:
    steps = read_metrics(folder)
    last = steps[-max(1, len(steps) // 10) :]
    return sum(step.jsd for step in last) / len(last)


def _configs(study: Study) -> Iterator[tuple[runs.Place, Config]]:
    """Yields (place, configuration) of every run. Raises ConfigError, which names the variant."""
    for name, changes in study.variants.items():
        for seed in study.seeds:
            folder = study.dir / _folder(name) / f"seed-{seed}"
            settings = study.changes | changes | {"run.seed": seed, "run.dir": str(folder)}
            try:
                config = checks.load(study.base, [f"{key}={json.dumps(value)}" for key, value in settings.items()])
                if found := config.rollout.store:
                    raise ConfigError([Complaint("rollout.store", "null, since runs share stores", found, "Unset it.")])
            except ConfigError as error:
                wrong = [dataclasses.replace(one, where=f"{one.where}, variant {name}") for one in error.complaints]
                raise ConfigError(wrong) from error
            yield (name, seed), config


def _make(place: runs.Place, configs: Mapping[runs.Place, Config], base: str) -> None:
    """Makes a run from the rollouts of its lender, or from its own, for which it reuses rows of all finished runs."""
    config, lender = configs[place], runs.lenders(configs)[place]
    stores = {one: Path(other.run.dir) / "rollouts" for one, other in configs.items() if runs.finished(other)}
    if lender:
        rollout = dataclasses.replace(config.rollout, store=str(stores[lender]))
    else:
        reuse = [str(store) for store in stores.values() if store.is_dir()]
        rollout = dataclasses.replace(config.rollout, reuse=[*config.rollout.reuse, *reuse])
    config = dataclasses.replace(config, rollout=rollout)
    directory = RunDirectory(config)
    with directory.locked():
        if lender:
            say(f"rollouts are those of {stores[lender]}")
            known = RunDirectory(configs[lender])
            for name in ("student_before", "teacher"):  # their accuracies do not depend on the training
                write_json(directory.evaluation(name), read_record(known.evaluation(name), object))
        make_run(config, directory, base, cluster.place(config))


def _folder(name: str) -> str:
    return re.sub(r"[^a-z0-9.+-]+", "-", name.lower()).strip("-")
