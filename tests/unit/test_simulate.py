"""The command ``masters-ray simulate``."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from masters_ray.cli import main
from tests.conftest import ROOT
from tests.unit.test_plan_rates import write_run

THREE = ("--questions", "48", "--shares", "0,1")
"""Three stages of 16 questions, an iteration each, all of them by the student before training."""


@pytest.fixture
def rates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A rates.json: a start of 10 s and steps of 1 s. An iteration of the demo is one batch, answered in 2 s and judged
    in 1 s."""
    monkeypatch.chdir(ROOT)
    file = tmp_path / "rates.json"
    costs = {"learner_seconds": 1, "publish_seconds": 0, "load_seconds": 0, "start_seconds": 10}
    file.write_text(json.dumps(costs | {"calls": {"answer": {"teacher": 0.125}, "judge": {"judge": 0.0625}}}))
    return file


def called(capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, str, str]:
    """(exit code, output, errors) of ``masters-ray simulate conf/demo.yaml WORDS``."""
    code = main(["simulate", "conf/demo.yaml", *map(str, words)])
    told = capsys.readouterr()
    return code, told.out, told.err


def column(output: str, name: str) -> list[str]:
    head, *rows = (re.split(r"\s{2,}", line.strip()) for line in output.split("\n\n")[1].splitlines())
    return [row[head.index(name)] for row in rows]


def test_a_configuration_is_simulated_at_written_rates(rates: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without online iterations 3 · 3 s before learning, then 10 + 3 · 1 s. With all three none, and the learner steps
    at 13, 16 and 19 s."""
    assert called(capsys, "--rates", rates, *THREE) == (
        0,
        f"rates of {rates}, 3 iterations, at most 8 steps behind\n"
        "\n"
        "online  teacher  student  judge  rollouts  learning  slower  learner busy  waited  teacher busy  "
        "student busy  judge busy  mean age  oldest  fresh  stored  syncs\n"
        "   0 %        1        1      1     9.0 s    13.0 s  1.00 ×          23 %   0.0 s           0 %"
        "           0 %         0 %         –       –      0       0      0\n"
        " 100 %        1        1      1     0.0 s    20.0 s  1.54 ×          15 %   7.0 s          30 %"
        "           0 %        15 %       1.0       2      3       0      0\n",
        "",
    )


def test_rates_are_those_of_a_run(rates: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By default of the configuration's own. Its start takes 10 s and a step 1.75 s."""
    run = tmp_path / "run"
    code, _, error = called(capsys, f"run.dir={run}", *THREE)
    assert code == 1 and f"{run}/online.jsonl: missing. Name a run" in error
    run.mkdir()
    write_run(run)
    for words in ((f"run.dir={run}",), ("--rates", run)):
        code, told, _ = called(capsys, *words, *THREE)
        assert (code, told.splitlines()[0]) == (0, f"rates of {run}, 3 iterations, at most 8 steps behind")
        assert column(told, "learning")[0] == "15.2 s"


def test_every_choice_of_replicas_stands_below_the_configuration_s_own(
    rates: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On-policy iterations of 2 batches of 32 questions, whose answers take 4 s and verdicts 2 s: 10 + 3 · (4 + 4 + 2 +
    1) s. A teacher for each saves an iteration 2 s, a judge for each 2 s more."""
    words = ("rollout.max_staleness=0", "learner.groups_per_step=64", "--rates", rates, "--questions", "192")
    choices = ("--replicas", "teacher=2", "--replicas", "teacher=2,judge=2")
    _, told, _ = called(capsys, *words, "--shares", "1", *choices)
    assert "3 iterations, at most 0 steps behind" in told
    assert [column(told, pool) for pool in ("teacher", "student", "judge")] == [list("122"), list("111"), list("112")]
    assert column(told, "learning") == ["43.0 s", "37.0 s", "31.0 s"]


def test_questions_are_those_of_the_configuration_unless_given(rates: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """2160 and 320 questions at 16 a step; the latter's stages of 106, 107 and 107 take 7 each."""
    assert "135 iterations" in called(capsys, "--rates", rates)[1]
    assert "21 iterations" in called(capsys, "--rates", rates, "--questions", "320")[1]
    assert column(called(capsys, "--rates", rates)[1], "online") == ["0 %", "5 %", "10 %", "20 %", "50 %", "100 %"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--shares", "0,1.5"), "rollout.online_fraction: expected at most 1, found 1.5"),
        (("--shares", "0,,1"), "rollout.online_fraction: expected a number, found None"),
        (("--shares", "nan"), "rollout.online_fraction: expected a finite number, found nan"),
        (("--replicas", "teacher"), "teacher: expected key=value, found no '='"),
        (("--replicas", "teacher=0"), "teacher.replicas: expected at least 1, found 0"),
        (("--replicas", "teacher=1.5"), "teacher.replicas: expected a whole number, found 1.5"),
        (("--replicas", "judges=2"), "judges.replicas: expected a known key"),
        (("--questions", "0"), "data.train.rows: expected at least 1, found 0"),
        (("data.train.rows=null",), "data.train.rows: expected a number, found none. Set it or"),
        (("rollout.max_stalenes=0",), "Did you mean rollout.max_staleness?"),
        (("--rates", "none.json"), "none.json: missing. Mend the file"),
        (("--rates", "/"), "/online.jsonl: missing. Name a run"),
    ],
)
def test_what_cannot_be_simulated_is_refused_before_anything_is_shown(
    words: tuple[str, ...], told: str, rates: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, output, error = called(capsys, "--rates", rates, "--shares", "0,1", *words)
    assert (code, output) == (1, "")
    assert told in error


def test_numbers_that_are_none_are_refused_by_the_command_line(rates: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        called(capsys, "--rates", rates, "--questions", "many")
    assert ended.value.code == 2
    assert "argument --questions: invalid" in capsys.readouterr().err
