"""``masters-ray plan``: its table, its page, what it keeps for the run, and what it refuses."""

import json
import os
import re
from pathlib import Path

import pytest

from masters_ray.cli import main
from tests.unit.test_plan_rates import rates, write_run

__all__ = ["rates"]


@pytest.fixture(autouse=True)
def cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 8)


def called(capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, str, str]:
    """(exit code, output, errors) of ``masters-ray plan conf/demo.yaml WORDS``."""
    code = main(["plan", "conf/demo.yaml", *map(str, words)])
    told = capsys.readouterr()
    return code, told.out, told.err


def column(output: str, name: str) -> list[str]:
    """Of the table that has it."""
    for part in output.split("\n\n"):
        lines = [line for line in part.splitlines() if not line.startswith(("page", "in all", "memory"))]
        head, *rows = (re.split(r"\s{2,}", line.strip()) for line in lines)
        if name in head:
            return [row[head.index(name)] for row in rows]
    raise LookupError(f"no table has {name}")


def test_a_configuration_is_planned_at_written_rates(
    rates: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Three stages of an iteration, by the student before training. Without online iterations 3 · 3 s before learning,
    then 10 + 3 · 1 s. With all three none, and the learner steps at 13, 16 and 19 s."""
    words = ("--rates", rates, "--questions", "48", "--shares", "0,1", f"run.dir={tmp_path / 'run'}")
    code, told, error = called(capsys, *words, "cluster.price=3600")
    assert (code, error) == (0, "")
    assert f"rates: of {rates}\n48 training questions, 3 optimizer steps, 720 held out\n" in told
    assert "in all 22.0 s: 0.0 CPU-hours, of 1 that it holds, 22 to pay\n" in told
    assert column(told, "learning") == ["13.0 s", "20.0 s"]
    assert column(told, "rollouts") == ["9.0 s", "0.0 s"]
    assert (column(told, "slower"), column(told, "fresh")) == (["1.00 ×", "1.54 ×"], ["0", "3"])
    kept = json.loads((tmp_path / "run" / "plan" / "plan.json").read_text())
    assert kept["phases"] == {
        "start of the engines": 0.0,
        "evaluation before": 0.0,
        "rollouts": 9.0,
        "learner": 13.0,
        "evaluation after": 0.0,
    }
    page = (tmp_path / "run" / "plan" / "plan.html").read_text().replace("\u00a0", " ")
    assert "22.0 s on 1 CPU, 22 to pay" in page and "limited by" in page


def test_a_rule_in_place_of_the_judge_saves_its_calls(
    rates: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The judge's calls are known from the rates alone: without them an iteration takes 2 s instead of 3."""
    _, told, _ = called(capsys, "--rates", rates, "--questions", "48", "--shares", "0", f"run.dir={tmp_path / 'run'}")
    saved = dict(zip(column(told, "change"), column(told, "saves"), strict=True))
    assert saved["judge.of_teacher=rule judge.of_student=rule"] == "3.0 s"


def test_rates_and_questions_are_the_configurations(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """2160 questions at 16 a step. The run's start takes 10 s and a group 1.875 / 32 s."""
    write_run(tmp_path)
    code, told, _ = called(capsys, f"run.dir={tmp_path}", "--shares", "0,0.05,0.1,0.2,0.5,1")
    assert (code, told.splitlines()[0]) == (0, f"rates: of {tmp_path}")
    assert "2160 training questions, 135 optimizer steps" in told
    assert column(told, "online") == ["0%", "5%", "10%", "20%", "50%", "100%"]
    assert column(told, "learning")[0] == "2 min 17 s"


def test_every_choice_of_replicas_has_a_row(rates: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On-policy iterations of 2 batches of 32 questions, whose answers take 4 s and verdicts 2 s: 10 + 3 · (4 + 4 + 2 +
    4) s. A teacher for each saves an iteration 2 s, a judge for each 2 s more."""
    words = ("rollout.max_staleness=0", "learner.groups_per_step=64", "--rates", rates, "--questions", "192")
    choices = ("--replicas", "teacher=2", "--replicas", "teacher=2,judge=2")
    _, told, _ = called(
        capsys, *words, "--shares", "1", *choices, f"run.dir={tmp_path / 'run'}", "cluster.local_cpus=8"
    )
    assert [column(told, pool) for pool in ("teacher", "student", "judge")] == [list("122"), list("111"), list("112")]
    assert column(told, "learning") == ["52.0 s", "46.0 s", "40.0 s"]


REFUSED = """
--rates RATES --shares 0,1.5 -> rollout.online_fraction: expected less than or equal to 1, found '1.5'
--rates RATES --replicas teacher -> teacher: expected key=value, found no '='
--rates RATES --replicas judges=2 -> judges.replicas: expected a known key
--rates none.json -> none.json: missing. Mend the file
--questions 9 -> rates: expected a run that was measured, or a card, found none. Name rates (--rates), measure
"""


@pytest.mark.parametrize("row", REFUSED.strip().splitlines())
def test_what_cannot_be_planned_is_refused(
    row: str, rates: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words, _, told = row.partition(" -> ")
    code, output, error = called(capsys, *words.replace("RATES", str(rates)).split(), f"run.dir={tmp_path / 'run'}")
    assert (code, output) == (1, "")
    assert told in error
