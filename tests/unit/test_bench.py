"""What the benchmarks make of raw measurements; parts of the learner's are run on models of the smallest size."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import models, parts, pregen, semi_online
from bench.aims import Aim, Outcome
from bench.figures import figures
from bench.memory import allocated
from bench.report import line, markdown
from masters_ray.plan.rates import Rates
from tests.conftest import ROOT


def _run(part: str, *arguments: Any) -> dict[str, Any]:
    if part == "cost_per_token":
        return {"seconds": {str(count): [0.5 * count, 0.25 * count] for count in arguments[2:]}, "tokens": 256}
    if part == "memory":
        return {"growth": 1000 + 2 * int(arguments[1]), "weights_and_gradients": 900}
    raise AssertionError(part)


def test_cost_per_token_is_the_median_of_ratios() -> None:
    outcome = figures()["cost_per_token_64_over_1"].take(_run, 2)
    assert outcome.value == pytest.approx(1.0)
    assert [row["ms per answer token"] for row in outcome.rows] == pytest.approx([375 / 256] * 7)


def test_memory_is_asked_to_grow_at_most_as_the_answers_do() -> None:
    figure = figures()["memory_512_over_16_answers"]
    outcome = figure.take(_run, 1)
    assert outcome.value == pytest.approx((100 + 1024) / (100 + 32))
    assert outcome.also["largest_growth_when_answers_double"] == pytest.approx((100 + 1024) / (100 + 512))
    assert figure.aim.met(outcome)


@pytest.mark.parametrize(("power", "met"), [(1, True), (1.1, False)])
def test_a_longer_answer_s_tokens_are_asked_to_cost_no_more(power: float, met: bool) -> None:
    figure = figures()["memory_per_token_1024_over_512"]
    outcome = figure.take(lambda _, tokens: {"above": max(100.0, tokens**power)}, 1)
    assert outcome.value == pytest.approx(2 ** (power - 1))
    assert figure.aim.met(outcome) is met


@pytest.mark.parametrize("part", [parts.against_separate, parts.live_teacher])
def test_a_step_is_timed_both_ways(part: Callable[[int], parts.Raw], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "STUDENT", models.TINY)
    monkeypatch.setattr(models, "TEACHER", models.TINY)
    seconds = part(2)["seconds"]
    assert [len(taken) for taken in seconds.values()] == [2, 2] and min(map(min, seconds.values())) > 0


def test_allocations_are_counted_at_their_worst_moment() -> None:
    def action() -> None:
        for count in (4, 16, 8):
            torch.zeros(count, 1024, 256)

    assert allocated(action) == 16 * 2**20


@pytest.mark.parametrize(
    ("aim", "value", "met"),
    [
        (Aim(least=4), 4.0, True),
        (Aim(least=0.9, most=1.1), 1.2, False),
        (Aim(), 1.0, None),
        (Aim(most=0.5), 0.6, False),
    ],
)
def test_aims(aim: Aim, value: float, met: bool | None) -> None:
    assert aim.met(Outcome(value=value, rows=[], raw={})) is met


def test_a_result_reads_as_markdown() -> None:
    entry = {"says": "a", "value": 1.25, "aim": "at least 2", "met": False, "also": {"b_c": 0.5}, "rows": [{"d": 1.0}]}
    on = {"processor": "p", "cores": 2, "threads": 1, "versions": {"torch": "2"}, "date": "2026-11-24"}
    assert "at least 2: NOT MET" in line("k", entry)
    text = markdown({"machine": on, "repeats": 5, "tables": {"k": entry}})
    assert "| `k` | a | 1.25 | at least 2: NOT MET |" in text and "* b c: 0.5" in text


def test_what_rollouts_cost_is_taken_from_runs_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(part: str, *arguments: Any) -> dict[str, Any]:
        if part == "engines":
            flow = {"utilisation": 0.95, "rows_per_s": 9.0, "tokens_per_row": 2.0}
            return flow if arguments[0] == "flow" else {"rows_per_s": 10.0}
        folder, _, asked = arguments
        (folder / "store").mkdir(parents=True, exist_ok=True)
        (folder / "store" / "manifest.json").touch()
        memory = [100.0, 105.0]
        return {
            "rows": asked,
            "seconds": asked / 2500,
            "memory": memory,
            "reading": 1.0,
            "until_first_call": asked % 1000 / 100,
        }

    monkeypatch.setattr(pregen, "_run", run)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    found = pregen.measure(2)
    assert (found["engine_utilisation"], found["flow_over_engine"]) == (0.95, 0.9)
    assert (found["instant_rows_per_s"], found["memory_last_over_first"]) == (2500, 1.05)
    assert found["cost_ratio_100k_10k"] == pytest.approx(1)
    assert found["resume_seconds"] == 0.64, "that of the run that goes on"
    assert all(len(one["rows"]) == 2 and one["met"] for one in found["tables"].values())


def test_online_iterations_are_forecast_at_the_rates_of_the_run_between(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After 10 s, 135 steps of 1 s. An iteration is answered in 1.5 s: hidden at 20 %, which take 145 s, and at 100 %
    the last of 135 is made at 212.5 s."""
    monkeypatch.chdir(ROOT)
    order: list[str] = []
    costs = {"learner_seconds": 1, "publish_seconds": 0, "load_seconds": 0, "start_seconds": 10}

    def run(folder: Path, words: Sequence[str], rollouts: Path | None = None) -> Path:
        order.append(folder.name)
        folder.mkdir(parents=True)
        (folder / "journal.json").write_text(json.dumps({"wall_seconds": 300.0, "phases": {"learner": 150.0}}))
        return folder

    def rates(folder: Path) -> Rates:
        order.append(f"rates of {folder.name}")
        return Rates(**costs, calls={"answer": {"teacher": 1.5 / 16}})

    monkeypatch.setattr(semi_online.Rates, "load", rates)
    monkeypatch.setattr(semi_online, "_run", run)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    tables = semi_online.measure(1)["tables"]
    assert order == [
        "share-0", "share-0.2", "alone", "rates of alone", "share-0.5", "share-1", "rates of share-0.5",
    ]  # fmt: skip
    rows = tables["forecast_error_max"]["rows"]
    assert [row["forecast over real"] for row in rows] == pytest.approx([145 / 150, 213.5 / 150])
    assert tables["forecast_dedicated_ratio_20"]["rows"] == [{"repeat": 1, "ratio": 1.0, "replicas of each kind": 1}]
