"""The command ``masters-ray simulate``."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from masters_ray.cli import main
from tests.conftest import ROOT
from tests.unit.test_simulation_rates import ROWS, write_run

RATES: dict[str, Any] = {
    "learner_seconds": 1,
    "offline_step_seconds": None,
    "online_step_seconds": None,
    "publish_seconds": 0,
    "load_seconds": 0,
    "start_seconds": 10,
    "calls": {
        "teacher.answer": {"seconds_per_call": 2, "seconds_per_question": 0},
        "judge.judge": {"seconds_per_call": 1, "seconds_per_question": 0},
    },
}
"""A start of 10 s and steps of 1 s. An iteration of the demo is one batch, made in 3 s, its verdicts in the last."""
THREE = ("--questions", "48", "--shares", "0,1")
"""Three stages of 16 questions, an iteration each, all of them by the student before training."""
ALONE = ("--cores-worth", "2", *THREE)


@pytest.fixture
def rates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A written rates.json."""
    monkeypatch.chdir(ROOT)
    return written(tmp_path)


def written(folder: Path, **changes: Any) -> Path:
    file = folder / "rates.json"
    file.write_text(json.dumps(RATES | changes))
    return file


def called(capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, str, str]:
    """(exit code, output, errors) of ``masters-ray simulate conf/demo.yaml WORDS``; key=value words come first."""
    code = main(["simulate", "conf/demo.yaml", *map(str, words)])
    told = capsys.readouterr()
    return code, told.out, told.err


def column(output: str, name: str) -> list[str]:
    """Of the table, which stands between the first empty line and the next."""
    table = output.split("\n\n")[1].splitlines()
    head, *rows = (re.split(r"\s{2,}", line.strip()) for line in table)
    return [row[head.index(name)] for row in rows]


def test_a_configuration_is_simulated_at_written_rates(rates: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without online iterations 10 + 3 · 1 s. With all three the learner steps at 13, 16 and 19 s."""
    assert called(capsys, "--rates", rates, *ALONE) == (
        0,
        f"rates of {rates}, 3 iterations, at most 8 steps behind\n"
        "shared cores, worth 2 while all are busy (--cores-worth)\n"
        "\n"
        "online  teacher  student  reference    wall  slower  learner busy  waited  teacher busy  student busy  "
        "reference busy  mean age  oldest  fresh  stored  syncs\n"
        "   0 %        1        1          1  13.0 s  1.00 ×          23 %   0.0 s           0 %           0 %  "
        "           0 %         –       –      0       0      0\n"
        " 100 %        1        1          1  20.0 s  1.54 ×          15 %   7.0 s          30 %           0 %  "
        "          15 %       1.0       2      3       0      0\n",
        "",
    )


def test_words_after_the_configuration_win_over_it(rates: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Strictly on-policy all is done in turn: 10 + 3 · (3 + 1) s."""
    _, told, _ = called(capsys, "rollout.max_staleness=0", "--rates", rates, *ALONE)
    assert "3 iterations, at most 0 steps behind" in told
    assert column(told, "wall") == ["13.0 s", "22.0 s"]


@pytest.mark.parametrize(
    ("words", "in_rates", "told", "wall"),
    [
        pytest.param(("--cores-worth", "1"), {}, "shared cores, worth 1 while all are busy (--cores-worth)", "22.0 s"),
        pytest.param((), {"cores_worth": 1}, "shared cores, worth 1 while all are busy ({rates})", "22.0 s"),
        pytest.param(
            ("--cores-worth", "2"), {"cores_worth": 1}, "shared cores, worth 2 while all are busy (--cores-worth)",
            "20.0 s", id="the option wins",
        ),
        pytest.param(("--dedicated",), {"cores_worth": 1}, "learner and replicas share no cores", "20.0 s"),
    ],
)  # fmt: skip
def test_it_says_what_it_took_the_cores_to_be_worth(
    words: tuple[str, ...],
    in_rates: dict[str, Any],
    told: str,
    wall: str,
    rates: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """On one core the second and third iteration are made at half speed while the learner takes a step of 2 s: it steps
    to 15, 19 and, alone, 22 s."""
    written(rates.parent, **in_rates)
    code, output, _ = called(capsys, "--rates", rates, *words, *THREE)
    assert (code, output.splitlines()[1]) == (0, told.format(rates=rates))
    assert column(output, "wall") == ["13.0 s", wall]


def test_what_shared_cores_are_worth_must_be_known(rates: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, error = called(capsys, "--rates", rates, *THREE)
    assert code == 1
    assert "--cores-worth: expected what the cores" in error and "python -m bench.cores" in error


def test_gpus_are_not_shared(rates: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, told, _ = called(capsys, "teacher.gpus=1", "--rates", rates, *THREE)
    assert (code, told.splitlines()[1]) == (0, "learner and replicas share no cores")
    code, _, error = called(capsys, "teacher.gpus=1", "--rates", rates, *ALONE)
    assert code == 1 and "share cores, found a configuration with GPUs. Leave it out." in error


def test_every_choice_of_replicas_stands_below_the_configuration_s_own(
    rates: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On-policy iterations of 3 batches, whose answers of 2 s share one replica for 6 s and whose verdicts of 1 s
    another for 3 s: 10 + 3 · (6 + 3 + 1) s. A teacher for each saves 4 s of an iteration, a judge for each 2 s more."""
    words = ("rollout.max_staleness=0", "learner.groups_per_step=96", "--rates", rates, "--dedicated")
    _, told, _ = called(
        capsys, *words, "--questions", "288", "--shares", "1", "--replicas", "teacher=3", "--replicas",
        "teacher=3,reference=3",
    )  # fmt: skip
    assert column(told, "teacher") == ["1", "3", "3"]
    assert column(told, "student") == ["1", "1", "1"]
    assert column(told, "reference") == ["1", "1", "3"]
    assert column(told, "wall") == ["40.0 s", "28.0 s", "22.0 s"]


def test_questions_are_those_of_the_configuration_unless_given(rates: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """2160 and 320 questions at 16 a step; the latter's stages of 106, 107 and 107 take 7 each."""
    shared = ("--rates", rates, "--dedicated", "--shares", "0")
    assert "135 iterations" in called(capsys, *shared)[1]
    assert "21 iterations" in called(capsys, *shared, "--questions", "320")[1]
    code, _, error = called(capsys, "data.train.rows=null", *shared)
    assert code == 1
    assert "data.train.rows: expected a number of questions, found none. Set it, or give --questions." in error


def test_rates_are_those_of_a_run(rates: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By default of the configuration's own. Without online iterations its start takes 10 s and a step 1.75 s."""
    run = tmp_path / "run"
    code, _, error = called(capsys, f"run.dir={run}", *ALONE)
    assert code == 1
    assert f"--rates: expected a run with online iterations, or a rates.json, found nothing, and {run} has no" in error
    run.mkdir()
    write_run(run, ROWS)
    for words in ((f"run.dir={run}",), ("--rates", run)):
        code, told, _ = called(capsys, *words, *ALONE)
        assert (code, told.splitlines()[0]) == (0, f"rates of {run}, 3 iterations, at most 8 steps behind")
        assert column(told, "wall")[0] == "15.2 s"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--shares", "0,1.5"), "--shares: expected fractions from 0 to 1 with commas between, found 0,1.5. Write for"),
        (("--shares", "0,,1"), "--shares: expected fractions from 0 to 1 with commas between, found 0,,1. Write for"),
        (("--shares", "nan"), "--shares: expected fractions from 0 to 1 with commas between, found nan. Write for"),
        (("--shares", ""), "--shares: expected fractions from 0 to 1 with commas between, found nothing. Write for"),
        (("--replicas", "teacher"), "--replicas: expected pools, each once and with 1 replica or more, with commas "
         "between, found teacher. Write for instance teacher=2,student=4."),
        (("--replicas", "teacher=0"), "between, found teacher=0. Write for instance teacher=2,student=4."),
        (("--replicas", "teacher=1.5"), "between, found teacher=1.5. Write for instance teacher=2,student=4."),
        (("--replicas", "teacher=2,teacher=3"), "between, found teacher=2,teacher=3. Write for instance"),
        (("--replicas", "judge=2"), "replicas of judge: expected a pool that there is, found judge. Pools: reference, "
         "student, teacher."),
        (("--questions", "0"), "--questions: expected 1 or more, found 0. Leave it out to take data.train.rows."),
        (("--cores-worth", "0.9"), "--cores-worth: expected a number of 1 or more, found 0.9. Give for instance 1.6"),
        (("--cores-worth", "nan"), "--cores-worth: expected a number of 1 or more, found nan. Give for instance 1.6"),
        (("--dedicated",), "--cores-worth: expected a learner and replicas that share cores, found --dedicated. Leave"),
        (("--rates", "none.json"), "none.json: expected this file, found none. Mend the file"),
        (("--rates", "/"), "/online.jsonl: expected this file, found none. Measure a run with rollout.online_fraction"),
    ],
)  # fmt: skip
def test_what_cannot_be_simulated_is_refused_before_anything_is_shown(
    words: tuple[str, ...], told: str, rates: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, output, error = called(capsys, "--rates", rates, *ALONE, *words)
    assert (code, output) == (1, "")
    assert told in error


def test_unknown_keys_and_damaged_rates_are_refused(rates: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, output, error = called(capsys, "rollout.max_stalenes=0", "--rates", rates, *ALONE)
    assert (code, output) == (1, "") and "Did you mean rollout.max_staleness?" in error
    written(rates.parent, cores_worth=0)
    code, output, error = called(capsys, "--rates", rates, *THREE)
    assert (code, output) == (1, "")
    assert f"{rates}: cores_worth: expected a number of 1 or more, found 0. Mend the file" in error


def test_numbers_that_are_none_are_refused_by_the_command_line(rates: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (("--questions", "many"), ("--cores-worth", "much")):
        with pytest.raises(SystemExit) as ended:
            called(capsys, "--rates", rates, *words)
        assert ended.value.code == 2
        assert f"argument {words[0]}: invalid" in capsys.readouterr().err
