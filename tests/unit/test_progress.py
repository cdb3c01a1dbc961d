import json
import os
import pty
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from masters_ray import cli, progress
from masters_ray.files import as_json
from masters_ray.pipeline.journal import cells
from tests.builders import step
from tests.conftest import ROOT

Out = pytest.CaptureFixture[str]


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def command() -> Iterator[None]:
    progress.begin()
    yield
    progress.begin()


def test_a_last_line_has_the_rates_of_all(capsys: Out) -> None:
    clock = Clock()
    with progress.track("stage 0", 2, clock=clock) as advance:
        clock.now += 4
        advance(2, tokens={"teacher": 20000, "judge": 10})
    assert capsys.readouterr().out == "stage 0: 2/2 in 4 s  tokens/s: teacher 5k, judge 2.5\n"


def rows(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.splitlines()]


def roll_out(clock: Clock) -> None:
    """Half a minute of start-up, 8 rows that were there, then 2 rows and 100 tokens a second."""
    with progress.track("rollouts", 100, 20, clock=clock) as advance:
        clock.now += 30
        advance(8, made=0, tokens={"teacher": 0})
        advance(2, tokens={"teacher": 500})
        for second in range(5, 35, 5):
            clock.now += 5
            advance(10, "teacher right 99%", tokens={"teacher": 500 + 100 * second, "judge": 0})


def test_a_log_has_a_line_every_ten_seconds_whose_rates_leave_out_start_up_and_rows_that_were_there(
    capsys: Out,
) -> None:
    roll_out(Clock())
    assert capsys.readouterr().out.splitlines() == [
        "rollouts: 28/100 in 30 s",
        "rollouts: 50/100 in 40 s, ETA 25 s  teacher right 99%  tokens/s: teacher 100",
        "rollouts: 70/100 in 50 s, ETA 15 s  teacher right 99%  tokens/s: teacher 100",
        "rollouts: 90/100 in 60 s, ETA 5 s  teacher right 99%  tokens/s: teacher 100",
    ]


def test_json_lines_hold_numbers(capsys: Out) -> None:
    progress.begin("json")
    roll_out(Clock())
    progress.warn("a row is lost")
    progress.end()
    progress.fail("the disk is full", 1)
    *_, last, warned, heading, repeated, failed = rows(capsys.readouterr().out)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", last.pop("time"))
    assert last.pop("text").startswith("rollouts: 90/100")
    assert last == {
        "kind": "progress",
        "title": "rollouts",
        "done": 90,
        "total": 100,
        "seconds": 60.0,
        "eta_seconds": 5.0,
        "tokens_per_second": {"teacher": 100.0, "judge": 0.0},
    }
    assert (warned["kind"], warned["text"]) == ("warning", "a row is lost")
    assert heading["text"] == "1 warning:"
    assert (repeated["kind"], repeated["text"], repeated["count"]) == ("repeated", "a row is lost", 1)
    assert (failed["kind"], failed["text"], failed["exit_code"]) == ("error", "the disk is full", 1)


def learn(clock: Clock, steps: int = 3) -> None:
    with progress.track("learner", 1000, kind="learner", clock=clock) as advance:
        for number in range(1, steps + 1):
            clock.now += 15
            one = step(number, loss=0.0123, jsd=0.1, kl=1e-5, tokens_per_second=43210.0, mfu=0.41)
            advance(1, cells=cells(one), fields=asdict(one))


def test_the_learners_figures_stand_in_columns_below_a_heading(capsys: Out) -> None:
    learn(Clock(), 22)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == [
        "step",
        "loss",
        "JSD",
        "KL",
        "R_acc",
        "R_distill",
        "lr",
        "norm",
        "tokens/s",
        "MFU",
        "ETA",
    ]
    assert lines[0] == lines[21] and lines.count(lines[0]) == 2, "again after twenty rows"
    assert lines[2].split()[:4] == ["2/1000", "0.0123", "0.1000", "0.00001"]
    assert lines[2].split()[-3:] == ["43.2k", "41.0%", "4:09:30"]
    ends = [{match.end() for match in re.finditer(r"\S+", line)} for line in (lines[0], lines[2])]
    assert ends[0] == ends[1] and max(map(len, lines)) <= 120


def test_a_learner_line_in_json_has_the_steps_metrics(capsys: Out) -> None:
    progress.begin("json")
    learn(Clock(), 1)
    [line] = rows(capsys.readouterr().out)
    metrics = asdict(step(1, loss=0.0123, jsd=0.1, kl=1e-5, tokens_per_second=43210.0, mfu=0.41))
    assert line["kind"] == "learner" and (line["done"], line["total"]) == (1, 1000)
    assert {name: line[name] for name in metrics} == as_json(metrics)


def test_what_takes_a_while_is_told_when_it_takes_ten_seconds_and_at_its_end(capsys: Out) -> None:
    clock = Clock()
    with progress.Doing("replica 1 of 2 of the teacher loads models/large", clock=clock) as doing:
        clock.now += 38
        doing.then("it warms up")
        clock.now += 0.5
        doing.then("masks")
        clock.now += 3725

    def fail() -> None:
        with progress.Doing("it fails", clock=clock):
            clock.now += 20
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert capsys.readouterr().out.splitlines() == [
        "replica 1 of 2 of the teacher loads models/large (38 s)",
        "masks (1:02:05)",
    ]


def test_a_log_is_told_of_it_before_its_end(capsys: Out, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_LINES", 0.01)
    with progress.Doing("the learner loads its checkpoint"):
        [timer] = [one for one in threading.enumerate() if isinstance(one, threading.Timer)]
        timer.join(10)
    assert capsys.readouterr().out == "the learner loads its checkpoint …\n"


def test_warnings_are_repeated_once_with_their_count_before_the_last_lines(capsys: Out) -> None:
    progress.conclude("report report.html")
    for number in (1, 2, 1, *range(3, 24)):
        progress.warn(f"row {number} is lost")
    progress.end()
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == ["warning: row 1 is lost", "warning: row 2 is lost", "warning: row 1 is lost"]
    assert lines[24:27] == ["24 warnings:", "  warning (2 times): row 1 is lost", "  warning: row 2 is lost"]
    assert lines[-2:] == ["  and 3 more, printed above", "report report.html"] and len(lines) == 24 + 1 + 20 + 2
    progress.end()
    assert capsys.readouterr().out == "", "said once"


def test_the_log_has_all_lines_with_their_times_from_the_commands_start(tmp_path: Path, capsys: Out) -> None:
    progress.say("before the directory is known")
    progress.log_to(tmp_path / "run.log")
    progress.warn("two\nlines")
    progress.fail("it ends", 1)
    progress.begin("json")
    progress.log_to(tmp_path / "run.log")
    progress.say("a second call")
    lines = (tmp_path / "run.log").read_text().splitlines()
    assert [re.sub(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", "T", line) for line in lines] == [
        *("T  before the directory is known", "T  warning: two", "T  lines", "T  masters-ray: it ends"),
        "T  a second call",
    ]
    assert capsys.readouterr().err == "masters-ray: it ends\n"


def test_a_log_that_cannot_be_written_is_given_up_with_a_warning(tmp_path: Path, capsys: Out) -> None:
    progress.log_to(tmp_path / "nowhere" / "run.log")
    progress.say("goes on")
    progress.say("and on")
    told = f"warning: {tmp_path}/nowhere/run.log cannot be written any more (No such file or directory)"
    assert sorted(capsys.readouterr().out.splitlines()) == sorted([told, "goes on", "and on"])


@pytest.mark.parametrize("words", [["--log", "json", "validate"], ["validate", "--log", "json"]])
def test_the_form_is_chosen_before_or_after_the_command(words: list[str], tmp_path: Path, capsys: Out) -> None:
    assert cli.main([*words, "conf/demo.yaml", f"run.dir={tmp_path}", "learner.zer=1"]) == 1
    out, err = capsys.readouterr()
    assert rows(out)[-1]["kind"] == "error" and "learner.zer" in rows(out)[-1]["text"]
    assert "learner.zer" in err
    assert cli.main(["validate", "--verbose", "conf/demo.yaml", f"run.dir={tmp_path}"]) == 0
    assert progress.shows_workers() and "no complaint" in capsys.readouterr().out


LIVE = """
import time
from masters_ray import progress
with progress.Doing("replica 1 of 2 of the teacher loads models/large", told_from=0):
    time.sleep(0.5)
with progress.track("stage 0: rollouts", 4) as advance, progress.Doing("beside it", told_from=9):
    for _ in range(4):
        time.sleep(0.3)
        advance(1, "teacher right 99%")
        progress.say("a line above the bar")
progress.warn("a row is lost, " + "which is told " * 6)
progress.say("/" + "x" * 100)
progress.end()
"""


def test_a_terminal_shows_bars_while_they_run_and_keeps_the_lines_alone() -> None:
    """The screen that is left, replayed from what was sent to the terminal: no bar, no spinner, no hidden cursor."""
    here, there = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "80", "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-c", LIVE], stdout=there, stderr=there, env=environment)
    os.close(there)
    sent = b""
    while True:
        try:
            if not (part := os.read(here, 65536)):
                break
        except OSError:
            break
        sent += part
    assert process.wait() == 0
    text = sent.decode()
    assert "━" in text and "1/4" in text and re.search(r"[⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏]", text)
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") > 0
    assert [re.sub(r"\d s\b", "N s", line) for line in screen(text)] == [
        "replica 1 of 2 of the teacher loads models/large (N s)",
        *["a line above the bar"] * 3,
        "stage 0: rollouts: 4/4 in N s  teacher right 99%",
        "a line above the bar",
        "warning: a row is lost, which is told which is told which is told which is told",
        "which is told which is told",
        "/" + "x" * 100,
        "1 warning:",
        "  warning: a row is lost, which is told which is told which is told which is",
        "told which is told which is told",
    ]


def screen(text: str) -> list[str]:
    """The lines that a terminal of any height shows after the text: knows the codes that rich sends."""
    lines, row = [""], 0
    for part in re.findall(r"\x1b\[[\d;?]*[A-Za-z]|\r|\n|[^\x1b\r\n]+", text):
        if part == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif part.endswith("A") and part.startswith("\x1b"):
            row -= int(part[2:-1])
        elif part == "\x1b[2K":
            lines[row] = ""
        elif not part.startswith(("\x1b", "\r")):
            lines[row] += part
    return [line.rstrip() for line in lines if line.strip()]
