"""``masters-ray plan``: forecasts what a configuration's run costs, what limits it, and what would change that.

a run, its probe, rates.json or a card's data sheet ─► Rates ─► forecast(config, rates) ─► Forecast ─► table, plan.json,
plan.html. A run keeps plan.json, and its report compares it with what happened.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from masters_ray import config as configuration
from masters_ray.config import Config, to_yaml
from masters_ray.files import write_json, write_text
from masters_ray.plan.forecast import Forecast, cores_of, forecast
from masters_ray.plan.memory import EngineBytes, WorkerBytes
from masters_ray.plan.sources import Asked, Source, memory_of, source
from masters_ray.progress import say
from masters_ray.report.render import render
from masters_ray.report.summary import PLAN, Planned


@dataclass(frozen=True, kw_only=True)
class Lever:
    """A change of the configuration that makes its run cheaper or faster."""

    name: str
    words: tuple[str, ...]  # ``key=value`` overrides that make the change
    costs: str  # what is given up


@dataclass(frozen=True, kw_only=True)
class Effect:
    """What a lever does to a forecast."""

    lever: Lever
    seconds: float  # wall seconds saved; below 0: lost
    device_hours: float  # hours of held devices saved
    store_bytes: float


@dataclass(frozen=True, kw_only=True)
class Plan:
    config: Config
    source: Source
    forecast: Forecast
    others: list[Forecast]  # of the online shares and replicas asked for
    effects: list[Effect]  # those that change something, the largest saving first
    engines: Mapping[str, EngineBytes]
    """Section of the configuration → what a rank of its engine holds, where checkpoints are on this machine."""
    learner: WorkerBytes | None

    @property
    def remarks(self) -> list[str]:
        """What a person should know of the configuration."""
        found = []
        beside = self.forecast.phases["learner"].devices
        if (
            self.config.rollout.placement == "auto"
            and self.forecast.online_fraction
            and beside == self.forecast.devices
        ):
            told = f"online iterations beside the learner need {beside:g} {self.forecast.unit}s"
            found.append(f"{told}; rollout.placement=turns has them take turns on the learner's")
        return found

    def price(self, one: Forecast) -> float | None:
        return None if self.config.cluster.price is None else one.device_hours * self.config.cluster.price


def make(file: str, overrides: Sequence[str], asked: Asked) -> Plan:
    """Makes a plan, writes plan.json and plan.html below run.dir. Raises ConfigError, StoreError."""

    def load(more: Sequence[str]) -> Config:
        return configuration.load(file, [*overrides, *more])

    config = load([])
    found = source(config, load, file, asked)
    counts = found.questions, found.held_out, cores_of(config)

    def forecast_of(words: Sequence[str]) -> Forecast:
        changed = load(words)
        return forecast(changed, found.rates_of(changed), *counts)

    here = forecast_of([])
    plan = Plan(
        config=config,
        source=found,
        forecast=here,
        others=[forecast_of(words) for words in _choices(asked, config)],
        effects=sorted(_effects(config, here, forecast_of), key=lambda one: -one.seconds),
        **memory_of(config, found),
    )
    folder = Path(config.run.dir) / "plan"
    phases = {name: one.seconds for name, one in here.phases.items()}
    kept = Planned(source=found.told, phases=phases, store_bytes=here.store_bytes, config=to_yaml(config))
    write_json(folder.parent / PLAN, kept)
    page = render(__name__, "plan.html.jinja", name=file, plan=plan, gib=gib, yaml=kept.config)
    write_text(folder / "plan.html", page)
    return plan


def _choices(asked: Asked, config: Config) -> Iterator[list[str]]:
    """Yields the overrides of every share with every choice of replicas."""
    choices = [[], *([one.replace("=", ".replicas=") for one in choice.split(",")] for choice in asked.replicas)]
    fractions = dict.fromkeys(asked.fractions(config))
    for fraction, choice in itertools.product(asked.shares.split(",") if asked.shares else fractions, choices):
        yield [f"rollout.online_fraction={fraction}", *choice]


def _effects(config: Config, here: Forecast, forecast_of: Callable[[Sequence[str]], Forecast]) -> Iterator[Effect]:
    for lever in levers(config):
        there = forecast_of(lever.words)
        effect = Effect(
            lever=lever,
            seconds=here.seconds - there.seconds,
            device_hours=here.device_hours - there.device_hours,
            store_bytes=(here.store_bytes or 0.0) - (there.store_bytes or 0.0),
        )
        if abs(effect.seconds) > 0.005 * here.seconds or effect.store_bytes > 0.005 * (here.store_bytes or 0.0):
            yield effect


def levers(config: Config) -> Iterator[Lever]:
    """Yields the changes that this configuration leaves open."""
    judge, rollout, learner = config.judge, config.rollout, config.learner
    # Judges that share the student's processes are as many as its replicas, or the others would need processes.
    judges = 2 * judge.replicas if judge.share_process else judge.replicas
    for pool, count in (("teacher", config.teacher.replicas), ("student", config.student.replicas)):
        words = [f"{pool}.replicas={2 * count}"]
        words += [f"judge.replicas={judges}"] if pool == "student" else []
        yield Lever(name=f"twice the {pool}'s replicas", words=tuple(words), costs="devices")
    yield Lever(name="twice the workers", words=(f"learner.workers={2 * learner.workers}",), costs="devices")
    if rollout.online_fraction:
        half = (f"rollout.online_fraction={rollout.online_fraction / 2:g}",)
        lost = "fresh answers (appendix F.2: 0.3 points at most)"
        yield Lever(name="half the online share", words=half, costs=lost)
    if {judge.of_teacher, judge.of_student} != {"rule"}:
        rule = ("judge.of_teacher=rule", "judge.of_student=rule")
        yield Lever(name="a rule as judge", words=rule, costs="right answers in other words than the label's")
    if rollout.teacher_answers + rollout.student_answers >= 4:
        halves = (
            f"rollout.teacher_answers={rollout.teacher_answers // 2}",
            f"rollout.student_answers={rollout.student_answers // 2}",
        )
        yield Lever(name="half the answers", words=halves, costs="comparisons within a group")
    if config.teacher.top_k > 20 and learner.teacher == "stored":
        yield Lever(name="20 stored scores", words=("teacher.top_k=20",), costs="exactness of the divergence")


def tell(plan: Plan) -> None:
    """Prints a plan."""
    say(render(__name__, "plan.txt.jinja", plan=plan, gib=gib, columns=columns).rstrip())


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Returns a line per row, the header first, each column as wide as its widest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(lines)


def gib(size: float) -> str:
    return f"{size / 2**30:,.1f} GiB" if size >= 2**30 else f"{size / 2**20:,.1f} MiB"
