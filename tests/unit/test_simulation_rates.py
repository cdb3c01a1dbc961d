from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from masters_ray.errors import StoreError
from masters_ray.simulation import Pool, Rates, measured
from tests.unit.test_simulation import BASE, exactly


def online_row(step: int, version: int, **changes: Any) -> dict[str, Any]:
    calls = {
        "teacher.answer": {"calls": 2, "questions": 32, "seconds": 8.0},
        "student.answer": {"calls": 2, "questions": 32, "seconds": 3.2},
        "judge.judge": {"calls": 0, "questions": 0, "seconds": 0.0},
    }
    return {
        "step": step,
        "version": version,
        "publish_seconds": 0.1 * step,
        "load_seconds": 0.2 * step,
        "calls": calls,
    } | changes


def write_run(folder: Path, online: list[dict[str, Any]], tail: str = "") -> Path:
    seconds = {1: 9.0, 2: 1.0, 3: 2.0, 4: 1.5, 5: 3.0}
    steps = [{"step": step, "online": False, "seconds": one, "waited": 0.5} for step, one in seconds.items()]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in steps) + tail)
    (folder / "online.jsonl").write_text("".join(json.dumps(one) + "\n" for one in online) + tail)
    (folder / "journal.json").write_text(json.dumps({"phases": {"start of the engines": 7.0, "learner": 30.0}}))
    return folder


ROWS = [online_row(2, 0), online_row(3, 1), online_row(5, 4)]


def test_rates_are_medians_and_seconds_per_question(tmp_path: Path) -> None:
    """Without the first step: 1, 2, 1.5, 3 s, of which 2, 3 and 5 were online. Versions above 0 took 0.3 and 0.5 s to
    publish, 0.6 and 1 to load. The learner's 30 s less steps 16.5, waiting 2.5 and publishing 1.0 leave 10. The teacher
    answered 96 questions in 24 s."""
    found = measured(write_run(tmp_path, ROWS, tail='{"step": 6, "sec'))
    assert found.learner_seconds == 1.75
    assert (found.offline_step_seconds, found.online_step_seconds) == (1.5, 2.0)
    assert (found.publish_seconds, found.load_seconds) == (exactly(0.4), exactly(0.8))
    assert found.start_seconds == exactly(10.0)
    assert [one.name for one in found.calls] == ["teacher.answer", "student.answer"]
    assert [one.seconds_per_call for one in found.calls] == [0.0, 0.0]
    assert [one.seconds_per_question for one in found.calls] == [exactly(0.25), exactly(0.1)]


@pytest.mark.parametrize(
    ("points", "seconds_per_call", "seconds_per_question"),
    [
        pytest.param([(1, 4, 3.0), (2, 16, 10.0)], 1.0, 0.5, id="1 + 4 · 0.5 and 1 + 8 · 0.5"),
        pytest.param([(1, 1, 1.0), (1, 3, 6.0)], 0.0, 1.9, id="never less than 0 a call: (1·1 + 3·6) / (1 + 9)"),
        pytest.param([(1, 1, 4.0), (1, 3, 2.0)], 3.0, 0.0, id="never less than 0 a question: their mean"),
        pytest.param([(1, 4, 2.0), (1, 4, 4.0), (1, 4, 6.0)], 0.0, 1.0, id="one size: 12 s for 12 questions"),
    ],
)
def test_batches_of_several_sizes_tell_what_a_call_costs(
    tmp_path: Path, points: list[tuple[int, int, float]], seconds_per_call: float, seconds_per_question: float
) -> None:
    rows = [
        online_row(step, step - 1, calls={"a.b": {"calls": calls, "questions": questions, "seconds": seconds}})
        for step, (calls, questions, seconds) in enumerate(points, 2)
    ]
    (found,) = measured(write_run(tmp_path, rows)).calls
    assert (found.seconds_per_call, found.seconds_per_question) == (
        exactly(seconds_per_call),
        exactly(seconds_per_question),
    )


def test_a_step_that_was_taken_again_counts_once(tmp_path: Path) -> None:
    rows = [online_row(2, 0), online_row(3, 1, publish_seconds=99.0), online_row(3, 1), online_row(5, 4)]
    assert measured(write_run(tmp_path, rows)) == measured(write_run(tmp_path, ROWS))


def test_the_start_is_not_known_while_the_learner_works_and_never_below_zero(tmp_path: Path) -> None:
    run = write_run(tmp_path, ROWS)
    (run / "journal.json").write_text('{"phases": {}}')
    assert measured(run).start_seconds is None
    (run / "journal.json").write_text('{"phases": {"learner": 3.0}}')
    assert measured(run).start_seconds == 0.0


def lose(name: str) -> Callable[[Path], object]:
    return lambda run: (run / name).unlink()


def put(name: str, content: str) -> Callable[[Path], object]:
    return lambda run: (run / name).write_text(content)


def without(key: str) -> str:
    return json.dumps({name: value for name, value in online_row(2, 1).items() if name != key})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lose("online.jsonl"), r"online.jsonl: expected this file, found none. Measure a run with rollout.online_frac"),
        (lose("metrics.jsonl"), r"metrics.jsonl: expected this file, found none. Measure a run that writes it, or"),
        (lose("journal.json"), r"journal.json: expected this file, found none"),
        (put("online.jsonl", ""), r"online.jsonl: expected a line for each online iteration, found none. Measure"),
        (put("online.jsonl", without("load_seconds")), r"line 1.load_seconds: expected this field, found only step, v"),
        (put("online.jsonl", without("calls")), r"online.jsonl: line 1.calls: expected this field"),
        (put("online.jsonl", '{"step": 2, "version": 1, "publish_seconds": 0, "load_seconds": 0, "calls": {}}'),
         r"line 1.calls: expected a call with questions, found none"),
        (put("online.jsonl", 'x\n{"step": 2}'), r"online.jsonl: line 1: expected a JSON object, found Expecting value"),
        (put("online.jsonl", "[2]\n"), r"online.jsonl: line 1: expected a JSON object, found \[2\]"),
        (put("metrics.jsonl", '{"step": 1, "seconds": 1, "waited": 0}\n'), r"two optimizer steps.*found 1. Let the"),
        (put("metrics.jsonl", '{"step": 1}\n{"step": 2, "seconds": "x"}'), r"line 2.seconds: expected a number.*'x'"),
        (put("metrics.jsonl", '{"step": 1, "seconds": 1}\n{"step": 2, "seconds": 1}'), r"line 1.waited: expected this"),
        (put("journal.json", "{}"), r"journal.json: phases: expected this field, found only an empty object"),
        (put("journal.json", '{"phases": 3}'), r"journal.json: phases: expected an object, found 3"),
    ],
)  # fmt: skip
def test_what_a_run_lacks_is_named(tmp_path: Path, damage: Callable[[Path], object], message: str) -> None:
    run = write_run(tmp_path, ROWS)
    damage(run)
    with pytest.raises(StoreError, match=message):
        measured(run)


def test_a_call_without_a_pool_is_refused(tmp_path: Path) -> None:
    calls = {"answer": {"calls": 1, "questions": 1, "seconds": 1}}
    with pytest.raises(StoreError, match=r"line 1.calls: expected names such as teacher.answer, found answer"):
        measured(write_run(tmp_path, [online_row(2, 1, calls=calls)]))


def test_rates_come_back_from_their_file(tmp_path: Path) -> None:
    rates = measured(write_run(tmp_path, ROWS))
    rates.save(tmp_path / "rates.json")
    assert Rates.load(tmp_path / "rates.json") == rates
    unknown = dataclasses.replace(rates, start_seconds=None, online_step_seconds=None)
    unknown.save(tmp_path / "rates.json")
    assert Rates.load(tmp_path / "rates.json") == unknown
    told = dataclasses.replace(rates, cores_worth=1.6)
    told.save(tmp_path / "rates.json")
    assert Rates.load(tmp_path / "rates.json") == told
    assert sorted(path.name for path in tmp_path.glob("rates.json*")) == ["rates.json"]


BY_HAND: dict[str, Any] = {
    "learner_seconds": 2,
    "offline_step_seconds": None,
    "online_step_seconds": None,
    "publish_seconds": 0.5,
    "load_seconds": 0.25,
    "start_seconds": 4,
    "calls": {"student.answer": {"seconds_per_call": 1, "seconds_per_question": 0.5}},
}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learner_seconds": None}, "rates.json: learner_seconds: expected a number of 0 or more, found None. Mend"),
        ({"publish_seconds": -1}, "rates.json: publish_seconds: expected a number of 0 or more, found -1"),
        ({"load_seconds": True}, "rates.json: load_seconds: expected a number of 0 or more, found True"),
        ({"start_seconds": math.nan}, "rates.json: start_seconds: expected a number of 0 or more, found nan"),
        ({"cores_worth": 0.9}, "rates.json: cores_worth: expected a number of 1 or more, found 0.9. Mend"),
        ({"calls": {}}, "rates.json: calls: expected at least one call, found none"),
        ({"calls": {"a.b": {}}}, "rates.json: calls.a.b.seconds_per_call: expected this field"),
        ({"calls": {"a.b": 1}}, "rates.json: calls.a.b: expected an object, found 1"),
        ({"calls": {"ab": {"seconds_per_call": 1, "seconds_per_question": 1}}}, "rates.json: calls: expected names"),
    ],
)
def test_wrong_rates_are_named_by_file_and_key(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    file = tmp_path / "rates.json"
    file.write_text(json.dumps(BY_HAND | changes))
    with pytest.raises(StoreError, match=re.escape(message)):
        Rates.load(file)


def test_a_missing_key_of_the_rates_is_named(tmp_path: Path) -> None:
    file = tmp_path / "rates.json"
    file.write_text(json.dumps({key: value for key, value in BY_HAND.items() if key != "start_seconds"}))
    with pytest.raises(StoreError, match=r"rates.json: start_seconds: expected this field, found only learner_seconds"):
        Rates.load(file)
    file.write_text("{")
    with pytest.raises(StoreError, match=r"rates.json: expected a JSON object, found Expecting"):
        Rates.load(file)


def test_rates_by_hand_need_not_say_what_cores_are_worth(tmp_path: Path) -> None:
    file = tmp_path / "rates.json"
    for worth in ({}, {"cores_worth": None}):
        file.write_text(json.dumps(BY_HAND | worth))
        assert Rates.load(file).cores_worth is None


def test_rates_by_hand_make_a_run(tmp_path: Path) -> None:
    file = tmp_path / "rates.json"
    file.write_text(json.dumps(BY_HAND))
    setup = Rates.load(file).setup(
        iterations=10,
        online=(5,),
        groups_per_step=4,
        batch_rows=4,
        max_staleness=0,
        max_wait_seconds=math.inf,
        pools={"student": Pool(replicas=1)},
    )
    assert setup == BASE
