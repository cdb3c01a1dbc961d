"""Broken set-ups that one of the doctor's checks of files, prompts and machine tells, and no other."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from masters_ray import cli, doctor
from masters_ray.doctor import MODELS
from tests.builders import checkpoint
from tests.conftest import DEMO
from tests.unit.test_chat import TEMPLATE, starts_with
from tests.unit.test_checks import THREE, words


def outcome(folder: Path, *more: str, skip: tuple[str, ...] = ()) -> dict[str, dict[str, str]]:
    """What the doctor finds without loading models: check → its line of doctor.json."""
    run = words(folder, [one | {"id": f"t{number}"} for number, one in enumerate(THREE * 3)], *more)
    _, page = doctor.examine(DEMO, run, [*MODELS, *skip])
    return {one["name"]: one for one in json.loads(page.with_name("doctor.json").read_text())}


def failed(found: dict[str, dict[str, str]]) -> set[str]:
    return {name for name, one in found.items() if one["verdict"] == "failed"}


def student(folder: Path, **changed: Any) -> list[str]:
    return [f"student.checkpoint={checkpoint(folder / 'student', weights=True, **changed)}"]


def both(folder: Path, **changed: Any) -> list[str]:
    """Teacher and student changed alike."""
    teacher = checkpoint(folder / "teacher", "teacher", weights=True, **changed)
    return [f"teacher.checkpoint={teacher}", *student(folder, **changed)]


def test_a_good_set_up_passes_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = outcome(tmp_path)
    assert failed(found) == set()
    assert {one for one in found if found[one]["verdict"] == "not done"} == {*MODELS, "driver", "compiler"}
    said = capsys.readouterr().out
    assert "ok      start_token     6 questions, 2 models" in said and "–       packing         skipped" in said
    page = (tmp_path / "deep" / "run" / "doctor" / "doctor.html").read_text()
    assert "Nothing stands against a run" in page and "engine and learner read the same prompt" in page


def more_ids(content: dict[str, Any]) -> None:
    content["added_tokens"].append(content["added_tokens"][-1] | {"id": 640, "content": "<|more|>"})


def other_words(content: dict[str, Any]) -> None:
    content["model"]["merges"] = content["model"]["merges"][:-1]


class Broken(NamedTuple):
    check: str
    change: Callable[[Path], list[str]]
    says: str


TWICE = TEMPLATE.replace("<|vision_start|><|image_pad|>", "<|vision_start|><|image_pad|><|image_pad|>")
BEGUN = starts_with("<|endoftext|>")
BROKEN = [
    Broken("tokenizer", lambda at: student(at, tokenizer=other_words), "differs in merges"),
    Broken("vocabulary", lambda at: both(at, tokenizer=more_ids), "640 rows for 641 tokens"),
    Broken("template", lambda at: student(at, template="{{ 'Answer. ' }}" + TEMPLATE), "in other words"),
    Broken("picture_tokens", lambda at: both(at, template=TWICE), "marks 2 pictures of 1"),
    Broken("start_token", lambda at: both(at, tokenizer=BEGUN, template="<|endoftext|>" * 2 + TEMPLATE), "twice"),
    Broken(
        "end_token",
        lambda at: both(at, template=TEMPLATE.replace("<|im_end|>", "<|reserved_5|>")),
        "answers would not end",
    ),
    Broken(
        "picture_size",
        lambda at: both(at, config=lambda one: one["vision_config"].update(patch_size=28)),
        "vision_config.patch_size 28",
    ),
    Broken("checkpoints", lambda at: student(at, config={"model_type": "molmo9"}), "of type molmo9"),
]


@pytest.mark.parametrize("broken", BROKEN, ids=lambda one: one.check)
def test_a_broken_pair_fails_the_check_of_that_name_alone(broken: Broken, tmp_path: Path) -> None:
    found = outcome(tmp_path, *broken.change(tmp_path))
    assert failed(found) == {broken.check}
    assert broken.says in found[broken.check]["figure"] and found[broken.check]["remedy"]


def test_too_little_disk_fails_the_disk_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage
    few = lambda place: usage(place)._replace(free=1000 if str(place).startswith(str(tmp_path)) else 2**40)  # noqa: E731
    monkeypatch.setattr(shutil, "disk_usage", few)
    assert failed(outcome(tmp_path)) == {"disk"}


def test_too_little_memory_and_a_small_shm_fail_their_checks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("masters_ray.doctor.quick.available_memory", lambda: 2**20)
    assert failed(outcome(tmp_path)) == {"memory"}
    monkeypatch.undo()
    usage = shutil.disk_usage
    full = lambda place: usage(place)._replace(free=2**20 if place == "/dev/shm" else 2**40)  # noqa: E731
    monkeypatch.setattr(shutil, "disk_usage", full)
    assert failed(outcome(tmp_path)) == {"shm"}


def test_data_that_cannot_be_read_stop_what_needs_them(tmp_path: Path) -> None:
    words(tmp_path, THREE)
    found = outcome(tmp_path, f"data.train.path={tmp_path / 'none.jsonl'}")
    assert failed(found) == {"data"}
    assert found["prompt"]["figure"] == "it needs data"


def test_a_check_that_is_skipped_is_kept_as_such_and_one_that_does_not_exist_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = student(tmp_path, template="{{ 'Answer. ' }}" + TEMPLATE)
    assert outcome(tmp_path, *broken, skip=("template",))["template"]["figure"] == "skipped"
    assert cli.main(["doctor", str(DEMO), "--skip", "tempalte"]) == 1
    assert "--skip: expected names of checks: packing" in capsys.readouterr().err


def test_the_program_s_exit_code_says_whether_a_check_failed(tmp_path: Path) -> None:
    skipped = [word for name in MODELS for word in ("--skip", name)]
    run = words(tmp_path, [one | {"id": f"t{number}"} for number, one in enumerate(THREE * 3)])
    assert cli.main(["doctor", str(DEMO), *run, *skipped]) == 0
    assert cli.main(["doctor", str(DEMO), *run, *student(tmp_path, config={"model_type": "molmo9"}), *skipped]) == 1
