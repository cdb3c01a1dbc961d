"""Rates of a run, and of a file."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from masters_ray.errors import StoreError
from masters_ray.files import write_json
from masters_ray.plan.rates import Rates
from masters_ray.records import OnlineStep, StepMetrics
from tests.conftest import ROOT

exactly = pytest.approx


def online_line(step: int, version: int, **changes: Any) -> dict[str, Any]:
    """32 questions, answered by the teacher in 8 s and by the student in 3.2 s; none was judged. Groups take 8 s."""
    line = OnlineStep(
        step=step,
        stage=0,
        version=version,
        ages=[step - 1 - version] * 30,
        rejected=2,
        seconds=8.0 + 0.2 * step,
        publish_seconds=0.1 * step,
        load_seconds=0.2 * step,
        calls={
            "teacher.answer": {"calls": 2, "questions": 32, "seconds": 8.0},
            "student.answer": {"calls": 2, "questions": 32, "seconds": 3.2},
            "judge.judge": {"calls": 0, "questions": 0, "seconds": 0.0},
        },
    )
    return dataclasses.asdict(line) | changes


def step_line(step: int, seconds: float) -> dict[str, Any]:
    unknown = dict.fromkeys((field.name for field in dataclasses.fields(StepMetrics)), 0)
    return unknown | {"step": step, "seconds": seconds, "rollout_wait_s": 0.5, "jsd_error_bound": math.nan}


STEPS = [step_line(step, seconds) for step, seconds in enumerate((9.0, 1.0, 2.0, 1.5, 3.0), 1)]
ONLINE = [online_line(2, 0), online_line(3, 1), online_line(5, 4)]


def write_run(folder: Path, online: list[dict[str, Any]] = ONLINE, tail: str = "") -> Path:
    for name, rows in (("metrics.jsonl", STEPS), ("online.jsonl", online)):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows) + tail)
    (folder / "config.yaml").write_text((ROOT / "conf" / "demo.yaml").read_text())
    (folder / "journal.json").write_text('{"phases": {"start of the engines": 7.0, "learner": 30.0}}')
    return folder


def test_rates_are_medians_and_seconds_per_question(tmp_path: Path) -> None:
    """Steps without the first: 1, 2, 1.5, 3 s. Versions above 0 took 0.3 and 0.5 s to publish, 0.6 and 1 to load. The
    learner's 30 s less steps 16.5, waiting 2.5 and publishing 1.0 leave 10. The teacher answered 96 questions in 24 s.
    """
    found = Rates.load(write_run(tmp_path, tail='{"step": 6, "sec'))
    assert dataclasses.asdict(found) == {
        "learner_seconds": 1.75,
        "publish_seconds": exactly(0.4),
        "load_seconds": exactly(0.8),
        "start_seconds": exactly(10.0),
        "calls": {"answer": {"teacher": exactly(0.25), "student": exactly(0.1)}},
    }


def test_calls_that_shared_a_replica_are_taken_out_of_each_other_s_seconds(tmp_path: Path) -> None:
    """Two batches on one replica, each under way for 4 s, were made in 4 s together: a question takes 1/8 s of it."""
    found = Rates.load(write_run(tmp_path, [line | {"seconds": 4.0 + line["load_seconds"]} for line in ONLINE]))
    assert found.calls == {"answer": {"teacher": exactly(0.125), "student": exactly(0.05)}}


def test_a_step_that_was_taken_again_counts_once(tmp_path: Path) -> None:
    again = [ONLINE[0], online_line(3, 1, publish_seconds=99.0, calls={}), *ONLINE[1:]]
    assert Rates.load(write_run(tmp_path, again)) == Rates.load(write_run(tmp_path))


@pytest.mark.parametrize(("phases", "start"), [("{}", None), ('{"learner": 3.0}', 0.0)])
def test_the_start_is_unknown_while_the_learner_works_and_never_below_zero(
    phases: str, start: float | None, tmp_path: Path
) -> None:
    (write_run(tmp_path) / "journal.json").write_text(f'{{"phases": {phases}}}')
    assert Rates.load(tmp_path).start_seconds == start


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("online.jsonl", None, r"online.jsonl: missing. Name a run with rollout.online_fraction"),
        (
            "online.jsonl",
            json.dumps(online_line(2, 1, calls={})) + "\n",
            r"an online iteration with calls, found 5 and 1",
        ),
        (
            "online.jsonl",
            '{"step": 2}\n',
            r"online.jsonl: line 1: stage: expected a value, found none.*Name a run with rollout.onl",
        ),
        ("online.jsonl", 'x\n{"step": 2}\n', r"online.jsonl: line 1: not JSON"),
        ("metrics.jsonl", None, r"metrics.jsonl: missing. Name a run"),
        ("metrics.jsonl", json.dumps(STEPS[0]) + "\n", r"expected two optimizer steps .* found 1 and 3"),
        ("metrics.jsonl", json.dumps(STEPS[0] | {"seconds": "x"}) + "\n", r"line 1: seconds: .* number.*'x'"),
        ("journal.json", "[]", r"journal.json: the top: expected an object"),
    ],
)
def test_what_a_run_lacks_is_named(tmp_path: Path, name: str, content: str | None, message: str) -> None:
    file = write_run(tmp_path) / name
    file.unlink() if content is None else file.write_text(content)
    with pytest.raises(StoreError, match=message):
        Rates.load(tmp_path)


def test_rates_come_back_from_their_file(tmp_path: Path) -> None:
    rates = Rates.load(write_run(tmp_path))
    for one in (rates, dataclasses.replace(rates, start_seconds=None)):
        write_json(tmp_path / "rates.json", dataclasses.asdict(one))
        assert Rates.load(tmp_path / "rates.json") == one


BY_HAND: dict[str, Any] = {
    "learner_seconds": 2,
    "publish_seconds": 0.5,
    "load_seconds": 0.25,
    "start_seconds": None,
    "calls": {"answer": {"student": 0.5}},
}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learner_seconds": None}, "rates.json: learner_seconds: expected a valid number"),
        ({"learner_seconds": 0}, "learner_seconds: expected greater than 0"),
        ({"publish_seconds": -1}, "publish_seconds: expected greater than or equal to 0"),
        ({"load_seconds": True}, "load_seconds: expected a valid number"),
        ({"start_seconds": math.nan}, "start_seconds: expected a finite number"),
        ({"calls": {}}, "calls: Dictionary should have at least 1 item"),
        ({"calls": {"answer": {}}}, "calls.answer: Dictionary should have at least 1 item"),
        ({"calls": {"answer": {"student": -1}}}, "calls.answer.student: expected greater than or equal to 0"),
        ({"calls": {"answer": {"studnet": 1}}}, "calls.answer.studnet.[key]: String should match pattern"),
        ({"learner_second": 1}, "learner_second: Unexpected keyword argument"),
    ],
)
def test_wrong_rates_are_named_by_file_and_key(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    file = tmp_path / "rates.json"
    file.write_text(json.dumps(BY_HAND | changes))
    with pytest.raises(StoreError, match=re.escape(message)) as caught:
        Rates.load(file)
    assert "Mend the file; the fields of Rates in" in str(caught.value)


def test_all_that_is_wrong_with_a_file_is_said_at_once(tmp_path: Path) -> None:
    file = tmp_path / "rates.json"
    file.write_text('{"learner_seconds": -1, "publish_seconds": 0, "start_seconds": 1, "calls": {"a": {"judge": 1}}}')
    with pytest.raises(StoreError, match=r"learner_seconds: .*-1; load_seconds: expected a value"):
        Rates.load(file)
    file.write_text("{")
    with pytest.raises(StoreError, match=r"rates.json: not JSON"):
        Rates.load(file)
