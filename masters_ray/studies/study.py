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
from masters_ray.files import read_json, write_json, write_text
from masters_ray.pipeline import held_out
from masters_ray.pipeline.directory import RunDirectory, holds_rows_of, rollout_settings
from masters_ray.pipeline.run import run as make_run
from masters_ray.progress import say
from masters_ray.studies import study_page
from masters_ray.studies.statistics import Mean, as_json, mean, resampled_mean

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
class Outcome:
    """What one variant came to, over its seeds. Accuracies are fractions."""

    name: str
    changes: dict[str, Any]
    accuracies: list[float]
    """Held-out accuracy of the trained student, seed by seed."""
    accuracy: Mean
    difference: Mean
    """To the reference, seed by seed."""
    difference_by_question: Mean
    """To the reference, question by question: what these questions say, for these seeds. A question that several
    seeds asked counts as often, and is resampled as one."""
    jsd: Mean
    """In the last tenth of the steps, nats."""
    seconds: Mean
    """Wall time of the phase in which the student learned, over all calls of a run: the learner's start, steps, handing
    over of weights and waiting. Rows made before are not in it."""
    waited: Mean
    """Seconds of these in which the learner stood still because fresh answers were not there yet."""


def read(file: str) -> Study:
    """The study in a YAML file. Raises ConfigError with everything that is wrong with it."""
    try:
        content: Any = OmegaConf.to_container(OmegaConf.load(file))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, OmegaConfBaseException) as error:
        told = " ".join(str(error).split())
        raise ConfigError([_complaint(file, "a study in YAML", told, "See conf/study for examples.")]) from error
    if not isinstance(content, dict):
        raise ConfigError([_complaint(file, "a mapping", repr(content), "See conf/study for examples.")])
    complaints = [
        _complaint(f"{key} ({file})", f"one of {', '.join(_KEYS)}", "an unknown key", "Correct it.")
        for key in content.keys() - _KEYS.keys()
    ]
    content.setdefault("changes", {})
    for key, kind in _KEYS.items():
        if not isinstance(content.get(key), kind):
            complaints.append(_complaint(f"{key} ({file})", f"a {kind.__name__}", repr(content.get(key)), "Set it."))
    if complaints:
        raise ConfigError(complaints)
    variants = {str(name): _dotted(changes or {}) for name, changes in content["variants"].items()}
    seeds = content["seeds"]
    if not seeds or not all(isinstance(seed, int) for seed in seeds) or len(set(seeds)) < len(seeds):
        complaints.append(_complaint(f"seeds ({file})", "different whole numbers", repr(seeds), "Such as [0, 1, 2]."))
    if content["reference"] not in variants:
        told = f"one of {', '.join(variants)}"
        complaints.append(_complaint(f"reference ({file})", told, content["reference"], "Name a variant."))
    folders = [_folder(name) for name in variants]
    if len(set(folders)) < len(folders) or "" in folders:
        complaints.append(
            _complaint(f"variants ({file})", "names that differ in letters and digits", ", ".join(variants), "Rename.")
        )
    if complaints:
        raise ConfigError(complaints)
    return Study(
        file=file,
        base=content["base"],
        dir=Path(content["dir"]),
        seeds=tuple(seeds),
        changes=_dotted(content["changes"]),
        reference=content["reference"],
        variants=variants,
    )


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
    write_json(study.dir / RESULT, {"study": _plain(study), "outcomes": [as_json(one) for one in found]})
    lines = markdown(study, found)
    write_text(study.dir / MARKDOWN, "\n".join(lines) + "\n")
    for line in lines:
        say(line)
    return study_page.write(study.dir / PAGE, study, found)


def outcomes(study: Study, configs: Mapping[tuple[str, int], Config]) -> list[Outcome]:
    """Of every variant, in the order of the file."""
    runs = {place: _Finished(Path(config.run.dir)) for place, config in configs.items()}
    reference = [runs[study.reference, seed] for seed in study.seeds]
    found = []
    for name, changes in study.variants.items():
        own = [runs[name, seed] for seed in study.seeds]
        pairs = list(zip(own, reference, strict=True))
        by_question = [item for one, other in pairs for item in one.differences(other).items()]
        found.append(
            Outcome(
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


def markdown(study: Study, found: Sequence[Outcome]) -> list[str]:
    """The table, between the command that made it and what its times are."""
    seeds = ", ".join(map(str, study.seeds))
    waited = study_page.any_waited(found)
    head = ["variant", "accuracy", "over seeds", f"to {study.reference}", "over seeds", "over questions"]
    head += ["JSD at the end", study_page.LEARNING, *([study_page.WAITING] if waited else [])]
    lines = [
        f"`masters-ray study {study.file}` (seeds {seeds}; accuracy in percent, differences in points, 95 % intervals)",
        "",
        f"| {' | '.join(head)} |",
        f"| --- |{' ---: |' * (len(head) - 1)}",
    ]
    for one in found:
        same = one.name == study.reference
        cells = [
            one.name,
            f"{100 * one.accuracy.value:.1f}",
            _interval(one.accuracy),
            "" if same else f"{100 * one.difference.value:+.1f}",
            "" if same else _interval(one.difference),
            "" if same else _interval(one.difference_by_question),
            f"{one.jsd.value:.4f}",
            f"{one.seconds.value:.1f}",
            *([f"{one.waited.value:.1f}"] if waited else []),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, "", study_page.told_of_times(found)]


class _Finished:
    """What a finished run left behind."""

    def __init__(self, folder: Path) -> None:
        summary = read_json(folder / "summary.json")
        self.accuracy = float(summary["accuracy"]["student_after"]["value"])
        self.seconds = float(summary["phases"]["learner"])
        # Runs from before there were online iterations do not tell of any.
        self.waited = float(summary["online"]["waited_seconds"]) if "online" in summary else 0.0
        steps = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        last = steps[-max(1, len(steps) // 10) :]
        self.jsd = sum(step["jsd"] for step in last) / len(last)
        marks = held_out.rows(folder / "evaluation" / "student_after.json")
        self._correct = {mark["id"]: int(mark["correct"]) for mark in marks if not mark.get("refused")}

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
                complaint = _complaint(
                    f"rollout.store, variant {name}",
                    "null: every run of a study keeps its rollouts in its own directory",
                    repr(config.rollout.store),
                    "Take it out.",
                )
                raise ConfigError([complaint])
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


def _plain(study: Study) -> dict[str, Any]:
    return dataclasses.asdict(study) | {"dir": str(study.dir)}


def _interval(found: Mean) -> str:
    return "–" if found.n == 1 else f"{100 * found.low:.1f} to {100 * found.high:.1f}"


def _complaint(where: str, expected: str, found: str, remedy: str) -> Complaint:
    return Complaint(where=where, expected=expected, found=found, remedy=remedy)
