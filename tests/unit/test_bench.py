import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import paper, semi_online
from bench.aims import Aim, Outcome
from bench.figures import figures
from bench.memory import allocated
from bench.paper import Assumed, table
from bench.report import line, markdown
from masters_ray.plan.rates import Rates

exactly = pytest.approx


def test_cost_per_token_is_the_median_of_ratios() -> None:
    def run(part: str, _: Any, repeats: int, *counts: int) -> dict[str, Any]:
        return {"seconds": {str(count): [0.5 * count, 0.25 * count] for count in counts}, "tokens": 256}

    outcome = figures()["cost_per_token_64_over_1"].take(run, 2)
    assert outcome.value == exactly(1.0)
    assert [row["ms per answer token"] for row in outcome.rows] == exactly([375 / 256] * 7)


def test_memory_is_asked_to_grow_at_most_as_the_answers_do_and_no_more_a_token_of_longer_ones() -> None:
    figure = figures()["memory_512_over_16_answers"]
    outcome = figure.take(lambda *words: {"growth": 1000 + 2 * int(words[2]), "weights_and_gradients": 900}, 1)
    assert outcome.value == exactly((100 + 1024) / (100 + 32))
    assert outcome.also["largest_growth_when_answers_double"] == exactly((100 + 1024) / (100 + 512))
    assert figure.aim.met(outcome)
    figure = figures()["memory_per_token_1024_over_512"]
    for power, met in ((1, True), (1.1, False)):
        outcome = figure.take(lambda _, tokens, power=power: {"above": max(100.0, tokens**power)}, 1)
        assert (outcome.value, figure.aim.met(outcome)) == (exactly(2 ** (power - 1)), met)


def test_allocations_are_counted_at_their_worst_moment() -> None:
    def action() -> None:
        for count in (4, 16, 8):
            torch.zeros(count, 1024, 256)

    assert allocated(action) == 16 * 2**20


def test_aims_are_met_or_not_and_a_result_reads_as_markdown() -> None:
    aims = [(Aim(least=4), 4.0), (Aim(least=0.9, most=1.1), 1.2), (Aim(), 1.0), (Aim(most=0.5), 0.6)]
    assert [aim.met(Outcome(value=value, rows=[], raw={})) for aim, value in aims] == [True, False, None, False]
    entry = {"says": "a", "value": 1.25, "aim": "at least 2", "met": False, "also": {"b_c": 0.5}, "rows": [{"d": 1.0}]}
    on = {"processor": "p", "cores": 2, "threads": 1, "versions": {"torch": "2"}, "date": "2026-11-24"}
    assert "at least 2: NOT MET" in line("k", entry)
    text = markdown({"machine": on, "repeats": 5, "tables": {"k": entry}})
    assert "| `k` | a | 1.25 | at least 2: NOT MET |" in text and "* b c: 0.5" in text


def test_online_iterations_are_forecast_at_a_run_s_rates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After 10 s, 135 steps of 1 s. An iteration is answered in 1.5 s: hidden at 20 %, which take 145 s, and at 100 %
    the last of 135 is made at 212.5 s."""
    costs: dict[str, Any] = {"group_seconds": 1 / 16, "publish_seconds": 0, "load_seconds": 0, "start_seconds": 10}

    def run(folder: Path, words: Sequence[str], rollouts: Path | None = None) -> Path:
        folder.mkdir(parents=True)
        (folder / "journal.json").write_text(json.dumps({"wall_seconds": 300.0, "phases": {"learner": 150.0}}))
        return folder

    def rates(folder: Path) -> Rates:
        return Rates(**costs, calls={"answer": {"teacher": 1.5 / 16}})

    monkeypatch.setattr(semi_online.Rates, "load", rates)
    monkeypatch.setattr(semi_online, "_run", run)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    tables = semi_online.measure(1)["tables"]
    rows = tables["forecast_error_max"]["rows"]
    assert [row["forecast over real"] for row in rows] == exactly([145 / 150, 213.5 / 150])
    assert tables["forecast_dedicated_ratio_20"]["rows"] == [{"repeat": 1, "ratio": 1.0, "replicas of each kind": 1}]


def test_the_columns_of_the_papers_table() -> None:
    """None online: 49 h. 10 %: 150,000 samples at 0.5 h per 1,000 are 75 h, and 0.9 · 49 h are 44.1 h."""
    rows = {row.share: row for row in table()}
    none = rows[0.0]
    assert none.paper_hours == none.literal_hours == exactly(none.colocated_hours, rel=2e-4) == 49.0
    assert rows[0.1].literal_hours == exactly(119.1)
    counts = [row.dedicated[0] for row in rows.values()]
    assert counts == [0, 12, 13, 16, 19, 51, 115]
    assert all(row.dedicated[1] <= 1.1 * 49 for row in rows.values())
    assert paper.hours(Assumed(), 1.0, 114) > 1.1 * 49, "a GPU less would not do"
    # on the same GPUs, at F.9's rates, 4 + 4 answers to everything take half of 24 h and half of 14 h
    assert all(row.colocated_hours >= 49 + row.share * (12 + 7) - 0.01 for row in rows.values())
