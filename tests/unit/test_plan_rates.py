import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from masters_ray import store
from masters_ray.errors import StoreError
from masters_ray.evaluate import Marked
from masters_ray.files import write_json
from masters_ray.pipeline.held_out import HeldOutMarks
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
    journal = {"wall_seconds": 50.0, "phases": {"data": 1.0, "start of the engines": 7.0, "learner": 30.0}}
    (folder / "journal.json").write_text(json.dumps(journal))
    return folder


def test_rates_are_means_of_steps_medians_of_versions_and_seconds_per_question(tmp_path: Path) -> None:
    """Steps without the first: 1, 2, 1.5, 3 s, of 32 groups each. Versions above 0 took 0.3 and 0.5 s to publish, 0.6
    and 1 to load. The learner's 30 s less steps 16.5, waiting 2.5 and publishing 1.0 leave 10. The teacher answered 96
    questions in 24 s."""
    found = Rates.load(write_run(tmp_path, tail='{"step": 6, "sec'))
    calls = {"answer": {"teacher": exactly(0.25), "student": exactly(0.1)}}
    assert dataclasses.asdict(found) == {
        "group_seconds": exactly(1.875 / 32),
        "publish_seconds": exactly(0.4),
        "load_seconds": exactly(0.8),
        "start_seconds": exactly(10.0),
        "calls": calls,
        "online_calls": calls,
        "engines_seconds": 7.0,
        "mask_seconds": 0.0,
        "evaluation_seconds": 0.0,
        "measuring_seconds": 0.0,
        "once": {"data": 1.0, "everything else": exactly(50 - 38)},
        "row_bytes": None,
    }


def outcome(stage: int, **changes: Any) -> dict[str, Any]:
    """16 questions, one set aside, in two batches on one replica, both under way for 4 s."""
    calls = {"teacher.answer": {"calls": 2, "questions": 16, "seconds": 8.0}}
    usual: dict[str, Any] = {"stage": stage, "ratio": 0.2, "sparsity": 0.2, "masked": {}, "unmasked": {}}
    usual |= {"teacher_digest": "", "seconds": 4.0, "set_aside": {"picture": 1}, "calls": calls}
    return usual | {"rows": 15, "stored_bytes": 1500} | changes


def test_an_offline_run_has_rates_too(tmp_path: Path) -> None:
    """Two stages of 4 s in a phase of 10 s leave 1 s for each mask. Both models were measured on 20 questions in 8 s,
    the trained student in 9 s, of which 20 · 0.2 s are questions. 60 s less the phases' 10 + 8 + 30 + 9 are other."""
    write_run(tmp_path, [])
    for stage in range(2):
        store.Writer(tmp_path / "rollouts" / f"stage-{stage}", {}).finish(outcome(stage))
    phases = {"rollouts": 10.0, "evaluation before": 8.0, "learner": 30.0, "evaluation after": 9.0, "data": 2.0}
    (tmp_path / "journal.json").write_text(json.dumps({"wall_seconds": 60.0, "phases": phases}))
    marks = [Marked(id=str(n), kind="", label="", answer="", finish="stop", correct=True) for n in range(20)]
    record = HeldOutMarks(questions="", model="", marks=marks)
    write_json(tmp_path / "evaluation" / "student_before.json", record)
    found = Rates.load(tmp_path)
    assert found.calls == {"answer": {"teacher": exactly(0.25)}}
    assert (found.mask_seconds, found.evaluation_seconds, found.measuring_seconds) == (1.0, exactly(0.2), exactly(5.0))
    assert (found.once, found.row_bytes) == ({"data": 2.0, "everything else": exactly(1.0)}, 100.0)
    assert found.publish_seconds is None and found.online_calls == {}


def test_calls_on_one_replica_are_taken_out_of_each_other_and_a_step_taken_again_counts_once(tmp_path: Path) -> None:
    """Two batches on one replica, each under way for 4 s, were made in 4 s together: a question takes 1/8 s of it."""
    shared = [line | {"seconds": 4.0 + line["load_seconds"]} for line in ONLINE]
    found = Rates.load(write_run(tmp_path, shared))
    assert found.calls == {"answer": {"teacher": exactly(0.125), "student": exactly(0.05)}}
    again = [shared[0], online_line(3, 1, publish_seconds=99.0, calls={}), *shared[1:]]
    assert Rates.load(write_run(tmp_path, again)) == found


def test_the_start_is_unknown_while_the_learner_works_and_never_below_zero(tmp_path: Path) -> None:
    for phases, start in (("{}", None), ('{"learner": 3.0}', 0.0)):
        (write_run(tmp_path) / "journal.json").write_text(f'{{"wall_seconds": 9, "phases": {phases}}}')
        assert Rates.load(tmp_path).start_seconds == start


def test_a_learner_that_ended_to_be_measured_started_more_than_once(tmp_path: Path) -> None:
    """The 10 s beside its steps, waiting and publishing are of five starts."""
    write_run(tmp_path)
    for number in (1, 2, 3, 4):
        write_json(tmp_path / "students" / f"step-{number}.json", {})
    assert Rates.load(tmp_path).start_seconds == exactly(2.0)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("online.jsonl", None, r"rollouts with calls, found 5 and 0 stages and online iterations. Name a run that has"),
        ("online.jsonl", json.dumps(online_line(2, 1, calls={})) + "\n", r"rollouts with calls, found 5 and 1 stages"),
        ("online.jsonl", '{"step": 2}\n', r"online.jsonl: line 1: stage: expected a value, found none.*Name a run"),
        ("metrics.jsonl", json.dumps(STEPS[0]) + "\n", r"expected two optimizer steps .* found 1 and 3"),
        ("metrics.jsonl", None, r"metrics.jsonl: missing. Name a run that has learned"),
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
        ({"group_seconds": 0}, "rates.json: group_seconds: expected greater than 0"),
        ({"start_seconds": math.nan}, "start_seconds: expected a finite number"),
        ({"calls": {}}, "calls: Dictionary should have at least 1 item"),
        ({"calls": {"answer": {"studnet": 1}}}, "calls.answer.studnet.[key]: String should match pattern"),
        ({"group_second": 1}, "group_second: Unexpected keyword argument"),
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
    costs = {"group_seconds": 1 / 16, "publish_seconds": 0, "load_seconds": 0, "start_seconds": 10}
    file.write_text(json.dumps(costs | {"calls": {"answer": {"teacher": 0.125}, "judge": {"judge": 0.0625}}}))
    return file
