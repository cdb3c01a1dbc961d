import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from masters_ray.cli import main
from masters_ray.errors import StoreError
from masters_ray.plan.rates import Rates
from masters_ray.records import OnlineStep
from tests.builders import step
from tests.conftest import DEMO

exactly = pytest.approx


def online_line(number: int, version: int, **changes: Any) -> dict[str, Any]:
    """32 questions, answered by the teacher in 8 s and by the student in 3.2 s; none was judged. Groups take 8 s."""
    calls = {"teacher.answer": (2, 32, 8.0), "student.answer": (2, 32, 3.2), "judge.judge": (0, 0, 0.0)}
    told = {name: dict(zip(("calls", "questions", "seconds"), one, strict=True)) for name, one in calls.items()}
    seconds = {"seconds": 8.0 + 0.2 * number, "publish_seconds": 0.1 * number, "load_seconds": 0.2 * number}
    ages = [number - 1 - version] * 30
    line = OnlineStep(step=number, stage=0, version=version, ages=ages, rejected=2, calls=told, **seconds)
    return dataclasses.asdict(line) | changes


STEPS = [
    dataclasses.asdict(step(number, seconds=seconds, rollout_wait_s=0.5))
    for number, seconds in enumerate((9.0, 1.0, 2.0, 1.5, 3.0), 1)
]
ONLINE = [online_line(2, 0), online_line(3, 1), online_line(5, 4)]


def write_run(folder: Path, online: list[dict[str, Any]] = ONLINE, tail: str = "") -> Path:
    for name, rows in (("metrics.jsonl", STEPS), ("online.jsonl", online)):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows) + tail)
    (folder / "config.yaml").write_text(DEMO.read_text())
    (folder / "journal.json").write_text('{"phases": {"start of the engines": 7.0, "learner": 30.0}}')
    return folder


def test_rates_are_means_of_steps_medians_of_versions_and_seconds_per_question(tmp_path: Path) -> None:
    """Steps without the first: 1, 2, 1.5, 3 s. Versions above 0 took 0.3 and 0.5 s to publish, 0.6 and 1 to load. The
    learner's 30 s less steps 16.5, waiting 2.5 and publishing 1.0 leave 10. The teacher answered 96 questions in 24 s.
    """
    found = Rates.load(write_run(tmp_path, tail='{"step": 6, "sec'))
    assert dataclasses.asdict(found) == {
        "learner_seconds": 1.875,
        "publish_seconds": exactly(0.4),
        "load_seconds": exactly(0.8),
        "start_seconds": exactly(10.0),
        "calls": {"answer": {"teacher": exactly(0.25), "student": exactly(0.1)}},
    }


def test_calls_on_one_replica_are_taken_out_of_each_other_and_a_step_taken_again_counts_once(tmp_path: Path) -> None:
    """Two batches on one replica, each under way for 4 s, were made in 4 s together: a question takes 1/8 s of it."""
    shared = [line | {"seconds": 4.0 + line["load_seconds"]} for line in ONLINE]
    found = Rates.load(write_run(tmp_path, shared))
    assert found.calls == {"answer": {"teacher": exactly(0.125), "student": exactly(0.05)}}
    again = [shared[0], online_line(3, 1, publish_seconds=99.0, calls={}), *shared[1:]]
    assert Rates.load(write_run(tmp_path, again)) == found


def test_the_start_is_unknown_while_the_learner_works_and_never_below_zero(tmp_path: Path) -> None:
    for phases, start in (("{}", None), ('{"learner": 3.0}', 0.0)):
        (write_run(tmp_path) / "journal.json").write_text(f'{{"phases": {phases}}}')
        assert Rates.load(tmp_path).start_seconds == start


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("online.jsonl", None, r"online.jsonl: missing. Name a run with rollout.online_fraction"),
        ("online.jsonl", json.dumps(online_line(2, 1, calls={})) + "\n", r"online iteration with calls, found 5 and 1"),
        ("online.jsonl", '{"step": 2}\n', r"online.jsonl: line 1: stage: expected a value, found none.*Name a run"),
        ("metrics.jsonl", json.dumps(STEPS[0]) + "\n", r"expected two optimizer steps .* found 1 and 3"),
    ],
)
def test_what_a_run_lacks_is_named(tmp_path: Path, name: str, content: str | None, message: str) -> None:
    file = write_run(tmp_path) / name
    file.unlink() if content is None else file.write_text(content)
    with pytest.raises(StoreError, match=message):
        Rates.load(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learner_seconds": 0}, "rates.json: learner_seconds: expected greater than 0"),
        ({"start_seconds": math.nan}, "start_seconds: expected a finite number"),
        ({"calls": {}}, "calls: Dictionary should have at least 1 item"),
        ({"calls": {"answer": {"studnet": 1}}}, "calls.answer.studnet.[key]: String should match pattern"),
        ({"learner_second": 1}, "learner_second: Unexpected keyword argument"),
    ],
)
def test_wrong_rates_are_named_by_file_and_key(rates: Path, changes: dict[str, Any], message: str) -> None:
    rates.write_text(json.dumps(json.loads(rates.read_text()) | changes))
    with pytest.raises(StoreError, match=re.escape(message)) as caught:
        Rates.load(rates)
    assert "Mend the file; the fields of Rates in" in str(caught.value)


@pytest.fixture
def rates(tmp_path: Path) -> Path:
    """A rates.json: a start of 10 s and steps of 1 s. An iteration of the demo is one batch, answered in 2 s and judged
    in 1 s."""
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
    """Three stages of an iteration, by the student before training. Without online iterations 3 · 3 s before learning,
    then 10 + 3 · 1 s. With all three none, and the learner steps at 13, 16 and 19 s."""
    assert called(capsys, "--rates", rates, "--questions", "48", "--shares", "0,1") == (
        0,
        f"rates of {rates}, 3 iterations, at most 8 steps behind\n"
        "\n"
        "online  teacher  student  judge  rollouts  learning  slower   waited  teacher busy  student busy  judge busy  "
        "mean age  fresh  stored\n"
        "    0%        1        1      1   0:00:09   0:00:13  1.00 ×  0:00:00            0%            0%          0%  "
        "       –      0       0\n"
        "  100%        1        1      1   0:00:00   0:00:20  1.54 ×  0:00:07           30%            0%         15%  "
        "     1.0      3       0\n",
        "",
    )


def test_rates_and_questions_are_the_configurations(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """2160 questions at 16 a step. The run's start takes 10 s and a step 1.875 s."""
    write_run(tmp_path)
    code, told, _ = called(capsys, f"run.dir={tmp_path}")
    assert (code, told.splitlines()[0]) == (0, f"rates of {tmp_path}, 135 iterations, at most 8 steps behind")
    assert column(told, "online") == ["0%", "5%", "10%", "20%", "50%", "100%"]
    assert column(told, "learning")[0] == "0:04:23"


def test_every_choice_of_replicas_has_a_row(rates: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On-policy iterations of 2 batches of 32 questions, whose answers take 4 s and verdicts 2 s: 10 + 3 · (4 + 4 + 2 +
    1) s. A teacher for each saves an iteration 2 s, a judge for each 2 s more."""
    words = ("rollout.max_staleness=0", "learner.groups_per_step=64", "--rates", rates, "--questions", "192")
    choices = ("--replicas", "teacher=2", "--replicas", "teacher=2,judge=2")
    _, told, _ = called(capsys, *words, "--shares", "1", *choices)
    assert "3 iterations, at most 0 steps behind" in told
    assert [column(told, pool) for pool in ("teacher", "student", "judge")] == [list("122"), list("111"), list("112")]
    assert column(told, "learning") == ["0:00:43", "0:00:37", "0:00:31"]


REFUSED = """
--shares 0,1.5 -> rollout.online_fraction: expected less than or equal to 1, found '1.5'
--replicas teacher -> teacher: expected key=value, found no '='
--replicas judges=2 -> judges.replicas: expected a known key
data.train.rows=null -> data.train.rows: expected a number, found none. Set it or
--rates none.json -> none.json: missing. Mend the file
"""


@pytest.mark.parametrize("row", REFUSED.strip().splitlines())
def test_what_cannot_be_simulated_is_refused(row: str, rates: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words, _, told = row.partition(" -> ")
    code, output, error = called(capsys, "--rates", rates, "--shares", "0,1", *words.split())
    assert (code, output) == (1, "")
    assert told in error
