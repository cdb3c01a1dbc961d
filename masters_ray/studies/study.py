"""Variants of a run, each with several seeds, and what they come to.

A study is a YAML file: a base configuration, what all its runs change, and what each variant changes beside:

    base: conf/demo.yaml
    dir: runs/studies/alpha
    seeds: [0, 1, 2]
    changes: {data.train.rows: 1080}
    reference: alpha 1
    variants:
      alpha 0: {reward.alpha: 0}
      alpha 1: {}

Runs are ordinary ones, DIR/VARIANT/seed-S. What is finished is not run again; runs that differ only in how they learn
share their rollouts and the accuracies of the untrained models, and any stage of the same recipe is taken over.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from masters_ray import checks, cluster
from masters_ray.config import Config
from masters_ray.errors import Complaint, ConfigError
from masters_ray.evaluate import Interval
from masters_ray.files import as_json, read_json, write_json, write_text
from masters_ray.pipeline import held_out
from masters_ray.pipeline.directory import RunDirectory, holds_rows_of, rollout_settings
from masters_ray.pipeline.run import run as make_run
from masters_ray.progress import say
from masters_ray.report import METRICS, SUMMARY
from masters_ray.report.charts import dots_chart
from masters_ray.report.inputs import read_metrics, read_summary
from masters_ray.report.numbers import NOTHING, decimal
from masters_ray.report.render import render
from masters_ray.studies.statistics import mean, resampled_mean

RESULT, PAGE, MARKDOWN = "study.json", "study.html", "study.md"
_KEYS = {"base": str, "dir": str, "seeds": list, "changes": dict, "reference": str, "variants": dict}
_SHARED = ("student_before", "teacher")
"""Accuracies that do not depend on how the student learns."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """What the file says."""

    file: str
    base: str
    dir: Path
    seeds: tuple[int, ...]
    changes: dict[str, Any]
    reference: str
    """The variant that the others are compared with."""
    variants: dict[str, dict[str, Any]]
    """Name → dotted key → value."""


@dataclass(frozen=True, kw_only=True)
class VariantOutcome:
    """What one variant came to, over its seeds. Accuracies are fractions."""

    name: str
    changes: dict[str, Any]
    accuracies: list[float]
    """Held-out accuracy of the trained student, seed by seed."""
    accuracy: Interval
    difference: Interval
    """To the reference, seed by seed."""
    difference_by_question: Interval
    """To the reference, question by question: what these questions say, for these seeds. A question that several
    seeds asked counts as often, and is resampled as one."""
    jsd: Interval
    """In the last tenth of the steps, nats."""
    seconds: Interval
    """Wall time of the phase in which the student learned, over all calls of a run: the learner's start, steps, handing
    over of weights and waiting. Rows made before are not in it."""
    waited: Interval
    """Seconds of these in which the learner stood still because fresh answers were not there yet."""


def read(file: str) -> Study:
    """The study in a YAML file. Raises ConfigError with everything that is wrong with it."""
    try:
        content: Any = OmegaConf.to_container(OmegaConf.load(file))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, OmegaConfBaseException) as error:
        content = " ".join(str(error).split())
    _require(file, (isinstance(content, dict), "the file", "a study in YAML", content))
    content.setdefault("changes", {})
    _require(
        file,
        *((key in _KEYS, key, f"one of {', '.join(_KEYS)}", "an unknown key") for key in content),
        *(
            (isinstance(content.get(key), kind), key, f"a {kind.__name__}", content.get(key))
            for key, kind in _KEYS.items()
        ),
    )
    variants = {str(name): _dotted(changes or {}) for name, changes in content["variants"].items()}
    seeds, names = content["seeds"], ", ".join(variants)
    different = bool(seeds) and all(isinstance(seed, int) for seed in seeds) and len(set(seeds)) == len(seeds)
    folders = {_folder(name) for name in variants}
    _require(
        file,
        (different, "seeds", "different whole numbers such as [0, 1, 2]", seeds),
        (content["reference"] in variants, "reference", f"one of {names}", content["reference"]),
        (len(folders - {""}) == len(variants), "variants", "names that differ in letters and digits", names),
    )
    return Study(
        file=file,
        base=content["base"],
        dir=Path(content["dir"]),
        seeds=tuple(seeds),
        changes=_dotted(content["changes"]),
        reference=content["reference"],
        variants=variants,
    )


def _require(file: str, *rules: tuple[bool, str, str, Any]) -> None:
    """Raises ConfigError with every (holds, key, expected, found) that does not hold."""
    broken = [
        Complaint(where=f"{key} ({file})", expected=expected, found=str(found), remedy="conf/study has examples.")
        for holds, key, expected, found in rules
        if not holds
    ]
    if broken:
        raise ConfigError(broken)


def run(study: Study) -> Path:
    """Make every run of a study that is not finished, then its table. Returns the page's path. Raises ConfigError
    before anything is started when a run's configuration is wrong, and the first MastersError of a run."""
    configs = dict(_configs(study))
    todo = [place for place, config in configs.items() if not RunDirectory(config).finished]
    say(f"{len(configs)} runs, {len(configs) - len(todo)} of them finished")
    if todo:
        with cluster.connected(configs[todo[0]].cluster):
            for number, place in enumerate(todo, 1):
                say(f"run {number} of {len(todo)}: {place[0]}, seed {place[1]}")
                _make(configs[place], [one for other, one in configs.items() if other != place], study.base)
    found = outcomes(study, configs)
    write_json(study.dir / RESULT, as_json({"study": study, "outcomes": found}))
    table = markdown(study, found)
    write_text(study.dir / MARKDOWN, table)
    say(table.removesuffix("\n"))
    write_text(study.dir / PAGE, page(study, found))
    return study.dir / PAGE


def outcomes(study: Study, configs: Mapping[tuple[str, int], Config]) -> list[VariantOutcome]:
    """Of every variant, in the order of the file."""
    runs = {place: _Finished(Path(config.run.dir)) for place, config in configs.items()}
    reference = [runs[study.reference, seed] for seed in study.seeds]
    found = []
    for name, changes in study.variants.items():
        own = [runs[name, seed] for seed in study.seeds]
        pairs = list(zip(own, reference, strict=True))
        by_question = [item for one, other in pairs for item in one.differences(other).items()]
        found.append(
            VariantOutcome(
                name=name,
                changes=changes,
                accuracies=[one.accuracy for one in own],
                accuracy=mean([one.accuracy for one in own]),
                difference=mean([one.accuracy - other.accuracy for one, other in pairs]),
                difference_by_question=resampled_mean(
                    [difference for _, difference in by_question], [question for question, _ in by_question]
                ),
                jsd=mean([one.jsd for one in own]),
                seconds=mean([one.seconds for one in own]),
                waited=mean([one.waited for one in own]),
            )
        )
    return found


def markdown(study: Study, found: Sequence[VariantOutcome]) -> str:
    """The table, between the command that made it and what its times are."""
    return render(__package__, "study.md.jinja", **_values(study, found))


def page(study: Study, found: Sequence[VariantOutcome]) -> str:
    """The study as an HTML document, for a reader who has seen neither code nor run."""
    [reference] = [one for one in found if one.name == study.reference]
    several = len(study.seeds) > 1
    accuracies = [(one.name, one.accuracy, one.accuracies) for one in found]
    differences = [
        (
            one.name,
            one.difference if several else one.difference_by_question,
            [own - other for own, other in zip(one.accuracies, reference.accuracies, strict=True)],
        )
        for one in found
        if one is not reference
    ]
    label = f"accuracy minus that of “{reference.name}” (points)"
    in_percent = "accuracy on held-out questions (%)"
    return render(
        __package__,
        "study.html.jinja",
        name=study.dir.name,
        several=several,
        accuracy_chart=dots_chart("accuracy", accuracies, in_percent, reference.accuracy.value),
        difference_chart=dots_chart("difference", differences, label, 0.0) if differences else None,
        dumps=json.dumps,
        **_values(study, found),
    )


def _values(study: Study, found: Sequence[VariantOutcome]) -> dict[str, Any]:
    """Of both templates. cells: a variant → its accuracy and differences with intervals, in percent and points; waited:
    whether a learner had to wait."""

    def bounds(mean: Interval) -> str:
        return NOTHING if mean.n == 1 else f"{100 * mean.low:.1f} to {100 * mean.high:.1f}"

    def cells(one: VariantOutcome) -> list[str]:
        own = [decimal(100 * one.accuracy.value, 1), bounds(one.accuracy)]
        if one.name == study.reference:
            return [*own, "", "", ""]
        difference = decimal(100 * one.difference.value, 1, sign=True)
        return [*own, difference, bounds(one.difference), bounds(one.difference_by_question)]

    return {"study": study, "found": found, "cells": cells, "waited": any(one.waited.value > 0 for one in found)}


class _Finished:
    """What a finished run left behind."""

    def __init__(self, folder: Path) -> None:
        """Raises StoreError when a file of the run is missing or damaged."""
        summary = read_summary(folder / SUMMARY)
        self.accuracy = summary.accuracy.student_after.value
        self.seconds = summary.phases["learner"]
        self.waited = summary.online.waited_seconds
        steps = read_metrics(folder / METRICS)
        last = steps[-max(1, len(steps) // 10) :]
        self.jsd = sum(step.jsd for step in last) / len(last)
        marks = held_out.read_marks(folder / "evaluation" / "student_after.json")
        self._correct = {mark.id: int(mark.correct) for mark in marks if not mark.refused}

    def differences(self, other: _Finished) -> dict[str, float]:
        """Question → 1 where only this run's student is right, −1 where only the other one's is."""
        shared = self._correct.keys() & other._correct.keys()
        return {question: float(self._correct[question] - other._correct[question]) for question in shared}


def _configs(study: Study) -> Iterator[tuple[tuple[str, int], Config]]:
    """Every run's configuration. Raises ConfigError, which names the variant."""
    for name, changes in study.variants.items():
        for seed in study.seeds:
            folder = study.dir / _folder(name) / f"seed-{seed}"
            settings = study.changes | changes | {"run.seed": seed, "run.dir": str(folder)}
            words = [f"{key}={json.dumps(value)}" for key, value in settings.items()]
            try:
                config = checks.load(study.base, words)
            except ConfigError as error:
                raise ConfigError(
                    [dataclasses.replace(one, where=f"{one.where}, variant {name}") for one in error.complaints]
                ) from error
            if config.rollout.store:
                expected = "null: every run of a study keeps its rollouts in its own directory"
                _require(study.file, (False, f"rollout.store, variant {name}", expected, config.rollout.store))
            yield (name, seed), config


def _make(config: Config, others: Sequence[Config], base: str) -> None:
    """One run, with what it can share with others."""
    stored = [one for one in others if RunDirectory(one).finished and (Path(one.run.dir) / "rollouts").is_dir()]
    same = [one for one in stored if rollout_settings(one) == rollout_settings(config) and holds_rows_of(one, config)]
    if same:
        store = str(Path(same[0].run.dir) / "rollouts")
        rollout = dataclasses.replace(config.rollout, store=store)
    else:
        reuse = [*config.rollout.reuse, *(str(Path(one.run.dir) / "rollouts") for one in stored)]
        rollout = dataclasses.replace(config.rollout, reuse=reuse)
    config = dataclasses.replace(config, rollout=rollout)
    directory = RunDirectory(config)
    with directory.locked():
        if same:
            say(f"rollouts are those of {same[0].run.dir}")
            for name in _SHARED:
                write_json(directory.evaluation(name), read_json(RunDirectory(same[0]).evaluation(name)))
        make_run(config, directory, base, cluster.place(config))


def _dotted(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested and dotted keys alike → dotted keys."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            found |= _dotted(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def _folder(name: str) -> str:
    return re.sub(r"[^a-z0-9.+-]+", "-", name.lower()).strip("-")
