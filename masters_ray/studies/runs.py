"""The runs of a study: which of them share rollouts, what they cost, and the state of each while they are made."""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from masters_ray.config import Config
from masters_ray.data import count
from masters_ray.files import read_lines
from masters_ray.method import schedule
from masters_ray.pipeline.run_dir import holds_rollouts_of
from masters_ray.plan.forecast import cores_of, forecast
from masters_ray.plan.rates import Rates
from masters_ray.report.summary import METRICS, SUMMARY, read_summary
from masters_ray.studies import before_learning, told_time

Place = tuple[str, int]  # variant and seed of a run
_SECONDS = 10.0  # time between two pages while a run is made
_COUNTED: dict[str, tuple[int, int]] = {}


def finished(config: Config) -> bool:
    return (Path(config.run.dir) / SUMMARY).exists()


def cost(configs: Mapping[Place, Config], base: Path) -> str:
    """Says what the unfinished runs cost. base: a run of the study's base configuration, which may know rates."""
    lent, done = lenders(configs), [place for place in configs if finished(configs[place])]
    todo = [(config, lent[place]) for place, config in configs.items() if place not in done]
    own = [config for config, lender in todo if lender is None]
    answers = sum(len(rows) * config.group_size for config in own for _, rows in _plan(config))

    def seconds(rates: Rates) -> float:
        made = [(forecast(config, rates, *_sizes(config), cores_of(config)), lender) for config, lender in todo]
        return sum(one.seconds - (before_learning(one) if lender else 0.0) for one, lender in made)

    time = told_time([*(Path(configs[place].run.dir) for place in done), base], seconds)
    return (
        f"{len(configs)} runs, {len(done)} of them finished; {len(own)} make rollouts, {answers:,} answers that are "
        f"judged and scored; {len(todo) - len(own)} take those of another run; "
        f"{sum(_steps(config) for config, _ in todo):,} optimizer steps: {time}"
    )


def lenders(configs: Mapping[Place, Config]) -> dict[Place, Place | None]:
    """Returns each run → the run whose rollouts it takes when runs are made in this order; None: it makes its own."""
    begun = [place for place, config in configs.items() if (Path(config.run.dir) / "rollouts").is_dir()]
    makers = [place for place in begun if finished(configs[place])]
    found: dict[Place, Place | None] = {}
    for place, config in configs.items():
        same = (one for one in makers if place not in begun and holds_rollouts_of(configs[one], config))
        found[place] = next(same, None)
        if found[place] is None and place not in makers:
            makers.append(place)
    return found


def states(configs: Mapping[Place, Config], told: Mapping[Place, str]) -> list[dict[str, Any]]:
    """Returns each run's state (waiting, finished, or as ``told`` by this call), optimizer steps taken or skipped, of
    ``all_steps``, the accuracy of its trained student (None: not finished), and its lender, as in ``lenders``."""
    found, lent = [], lenders(configs)
    for (variant, seed), config in configs.items():
        folder, done = Path(config.run.dir), finished(config)
        state = {"variant": variant, "seed": seed, "dir": folder, "rollouts_of": lent[variant, seed]}
        state["state"] = "finished" if done else told.get((variant, seed), "waiting")
        state["accuracy"] = read_summary(folder).accuracy.student_after if done else None
        state["steps"] = sum(len(read_lines(folder / name)) for name in (METRICS, "skipped.jsonl"))
        found.append(state | {"all_steps": _steps(config)})
    return found


@contextmanager
def shown(write: Callable[[], object], told: dict[Place, str], place: Place) -> Iterator[None]:
    """Writes the page every _SECONDS while the block makes a run; notes why the run failed in ``told``."""
    ended = threading.Event()

    def repeat() -> None:
        while not ended.wait(_SECONDS):
            write()

    (watcher := threading.Thread(target=repeat, daemon=True)).start()
    try:
        yield
    except BaseException as error:
        told[place] = f"failed: {error or type(error).__name__}"
        raise
    finally:
        ended.set()
        watcher.join()
        write()


def _sizes(config: Config) -> tuple[int, int]:
    """Returns the numbers of training and held-out questions; counts the rows of the same sources once."""
    data, key = config.data, repr(config.data)
    if key not in _COUNTED:
        _COUNTED[key] = count(data.train, data.train_rows), count(data.held_out, data.held_out_rows)
    return _COUNTED[key]


def _plan(config: Config) -> list[tuple[schedule.Stage, range]]:
    return schedule.plan(config.schedules, _sizes(config)[0])


def _steps(config: Config) -> int:
    return len(schedule.iterations(_plan(config), config.learner.groups_per_step, config.rollout.online_fraction))
