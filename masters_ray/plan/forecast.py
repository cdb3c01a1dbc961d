"""Forecasts the seconds of a run's phases by a recurrence over its optimizer steps (appendix F.2 and F.9).

    groups of step n begin    when the groups before are made and version n − 1 − max_staleness is published;
                              in turns: when the learner has reached n
    step n begins             when step n − 1 is done, its version is published if an iteration wants it, and, in an
                              online iteration, the groups of n are made or max_wait_seconds have passed

Engines start with version 0, so publishing it is part of the start. Groups that come too late are still completed;
groups of an iteration that the learner has passed are not begun.
"""

import math
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from masters_ray.config import Config, Rollout
from masters_ray.errors import StoreError
from masters_ray.method import schedule
from masters_ray.method.schedule import Iteration, version_for
from masters_ray.plan.rates import GroupMaking, Rates, group_making
from masters_ray.replicas.processes import Processes, for_measuring, for_rollouts


@dataclass(frozen=True, kw_only=True)
class LearningTimes:
    """Times and counts of the learner's phase."""

    seconds: float  # length of the phase, start included
    waited_seconds: float
    ages: tuple[int, ...]
    """For each iteration learned from its own groups: the optimizer steps by which their writer was behind."""
    late: int  # online iterations whose groups did not come in time
    questions: int  # questions in the online iterations whose groups were begun
    published: int  # versions that the learner published, without version 0


@dataclass(frozen=True, kw_only=True)
class PhaseForecast:
    seconds: float
    devices: float  # GPUs that the phase's processes hold; CPUs where the run uses no GPU
    busy: Mapping[str, float]
    """Pool, or learner → fraction of the phase in which one of it works; mean over its replicas or workers."""

    @property
    def device_hours(self) -> float:
        return self.seconds * self.devices / 3600

    @property
    def limit(self) -> str | None:
        """What the phase waits for: the pool that works most."""
        return max(self.busy, key=lambda pool: self.busy[pool]) if self.busy else None


@dataclass(frozen=True, kw_only=True)
class Forecast:
    online_fraction: float
    replicas: Mapping[str, int]
    steps: int
    rows: int  # rows stored before learning
    learning: LearningTimes
    phases: Mapping[str, PhaseForecast]  # by their names in a run's journal, in the order of a run
    store_bytes: float | None  # of the stages' stores; None: not known
    unit: str  # GPU or CPU

    @property
    def seconds(self) -> float:
        return sum(one.seconds for one in self.phases.values())

    @property
    def devices(self) -> float:
        """Devices that the run holds from its start to its end: those of its largest phase."""
        return max(one.devices for one in self.phases.values())

    @property
    def device_hours(self) -> float:
        """Hours of all devices that the run holds, idle ones too: what is paid for."""
        return self.seconds * self.devices / 3600


def learning(
    iterations: Sequence[Iteration],
    making_seconds: Callable[[int], float],
    rates: Rates,
    rollout: Rollout,
    workers: int = 1,
) -> LearningTimes:
    """Evaluates the recurrence above; an unknown start takes 0 s. making_seconds: number of questions of an iteration →
    seconds until their groups are made, once the student's replicas hold the version. Raises StoreError for online
    iterations at the rates of a run without any."""
    versions = {one.number: version_for(one.number, rollout.max_staleness) for one in iterations if one.online}
    if versions and (rates.publish_seconds is None or rates.load_seconds is None):
        told = "rates of a run without online iterations do not say what publishing the student's weights takes"
        raise StoreError(f"{told}. Name a run with rollout.online_fraction above 0, or measure with --probe.")
    publish_seconds, load_seconds = rates.publish_seconds or 0.0, rates.load_seconds or 0.0
    wanted = set(versions.values()) - {0}
    free = delivered = rates.start_seconds or 0.0
    published = {0: free}
    waited, questions = 0.0, 0
    ages: list[int] = []
    for one in iterations:
        if one.online:
            version, limit = versions[one.number], free + rollout.max_wait_seconds
            begun = free if rollout.placement == "turns" else max(delivered, published[version])
            if begun <= limit:
                delivered = begun + load_seconds * (version > 0) + making_seconds(len(one.positions))
                questions += len(one.positions)
            if delivered <= limit:
                ages.append(one.number - 1 - version)
            waiting = max(0.0, min(delivered, limit) - free)
            waited, free = waited + waiting, free + waiting
        free += rates.group_seconds * len(one.positions) / workers
        if one.number in wanted:
            free += publish_seconds
            published[one.number] = free
    return LearningTimes(
        seconds=free,
        waited_seconds=waited,
        ages=tuple(ages),
        late=len(versions) - len(ages),
        questions=questions,
        published=len(wanted),
    )


def cores_of(config: Config) -> float:
    """Returns the cores that all processes share; infinite where they have GPUs."""
    if uses_gpus(config):
        return math.inf
    return float(min(config.cluster.local_cpus or math.inf, os.cpu_count() or 1))


def uses_gpus(config: Config) -> bool:
    return any([config.learner.gpus, *(model.gpus for model in config.models.values())])


def forecast(config: Config, rates: Rates, questions: int, held_out: int, cores: float = math.inf) -> Forecast:
    """Forecasts the run of a configuration with so many training and held-out questions. cores: replicas that can work
    at the same time. Raises StoreError as ``learning`` does."""
    rollout = config.rollout
    stages = schedule.plan(config.schedules, questions)
    iterations = schedule.iterations(stages, config.learner.groups_per_step, rollout.online_fraction)
    offline = group_making(config, rates.calls, online=False, cores=cores)
    online = group_making(config, rates.online_calls or rates.calls, online=True, cores=cores)
    made_before: Counter[int] = Counter()
    for one in iterations:
        made_before[one.stage] += len(one.positions) * (rollout.spare_rows or not one.online)
    rows = sum(made_before.values())
    learned = learning(iterations, cache(online.seconds), rates, rollout, config.learner.workers)
    return Forecast(
        online_fraction=rollout.online_fraction,
        replicas=offline.replicas,
        steps=len(iterations),
        rows=rows,
        learning=learned,
        phases=_phases(config, rates, learned, offline, online, made_before, held_out, iterations),
        store_bytes=None if rates.row_bytes is None else rows * rates.row_bytes,
        unit="GPU" if uses_gpus(config) else "CPU",
    )


def _phases(
    config: Config,
    rates: Rates,
    learned: LearningTimes,
    offline: GroupMaking,
    online: GroupMaking,
    made_before: Mapping[int, int],
    held_out: int,
    iterations: Sequence[Iteration],
) -> dict[str, PhaseForecast]:
    fraction, teachers = config.rollout.online_fraction, len(config.schedules)
    making = sum(map(cache(offline.seconds), made_before.values()))
    rollouts = making + rates.mask_seconds * len(made_before)
    busy = offline.busy(sum(made_before.values()))
    of_online = online.busy(learned.questions) | {"learner": learned.seconds - learned.waited_seconds}
    of_online["student"] += learned.published * (rates.load_seconds or 0.0)
    at_rollouts = max(_devices(for_rollouts(config, number, learned=fraction > 0)) for number in range(teachers))
    at_learning = config.learner.workers * (config.learner.gpus or config.learner.cpus)
    beside = at_rollouts if fraction and config.rollout.placement != "turns" else 0.0
    measuring = rates.evaluation_seconds * held_out
    after = rates.measuring_seconds + measuring
    evaluation = config.evaluation
    on_the_way = len(schedule.evaluated(iterations, evaluation.every, config.learner.keep == "best"))
    each = rates.measuring_seconds + rates.evaluation_seconds * min(held_out, evaluation.questions or held_out)
    # The learner ends for each of them and starts again, as do the engines of online iterations.
    starts = rates.engines_seconds * (teachers + on_the_way * (fraction > 0))
    learner = learned.seconds + on_the_way * (rates.start_seconds or 0.0)
    devices = {"start of the engines": at_rollouts, "evaluation before": at_rollouts, "rollouts": at_rollouts}
    devices |= {"learner": at_learning + beside}
    devices |= dict.fromkeys(("evaluation while learning", "evaluation after"), _devices(for_measuring(config)))
    seconds = {"start of the engines": starts, "evaluation before": 2 * measuring}
    seconds |= {"rollouts": rollouts, "learner": learner}
    seconds |= {"evaluation while learning": on_the_way * each} if on_the_way else {}
    seconds |= {"evaluation after": after}
    working = {"rollouts": busy, "learner": of_online if fraction else {"learner": learned.seconds}}
    once = {name: PhaseForecast(seconds=length, devices=0.0, busy={}) for name, length in rates.once.items()}
    rest = {name: once.pop(name) for name in ("everything else",) if name in once}
    worked = {
        name: PhaseForecast(
            seconds=length,
            devices=devices[name],
            busy={pool: min(1.0, one / length) for pool, one in working.get(name, {}).items() if length and one},
        )
        for name, length in seconds.items()
    }
    return once | worked | rest


def _devices(processes: Sequence[Processes]) -> float:
    """Returns the GPUs that processes hold, or the CPUs where none holds a GPU."""
    gpus = sum(one.count * one.gpus for one in processes)
    return gpus or sum(one.count * one.cpus for one in processes)
