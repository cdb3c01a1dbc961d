import base64
import dataclasses
import io
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from masters_ray import config as configuration
from masters_ray import store
from masters_ray.config import Config
from masters_ray.evaluate import Marked
from masters_ray.files import append_lines
from masters_ray.learner.job import GroupRewards
from masters_ray.pipeline import examples, machine
from masters_ray.pipeline.examples import seen
from masters_ray.pipeline.run_dir import RunDirectory
from masters_ray.records import Picture, RolloutGroup
from tests import builders
from tests.builders import group, png, problem, scored
from tests.conftest import ROOT


def written(text: str, position: int, answers: int = 2, version: int | None = None) -> RolloutGroup:
    """A group whose answers say ``text``."""
    one = scored([5, 1], text=text)
    if version is not None:
        one = dataclasses.replace(one, behaviour_logprobs=np.full(2, -1.0, np.float32))
    return dataclasses.replace(group([one] * answers, position=position), version=version)


def put(folder: store.Folder, *groups: RolloutGroup) -> None:
    """Into a store that is not closed."""
    builders.written(folder, {}, *([one] for one in groups))


def rewards(position: int, divergence: float, answers: int = 2, version: int | None = None) -> dict[str, Any]:
    numbers = dict.fromkeys(("divergences", "distillation", "advantages"), [divergence] * answers)
    return dataclasses.asdict(GroupRewards(stage=0, position=position, version=version, **numbers))


def shown(directory: RunDirectory) -> list[tuple[str, int, float | None]]:
    """What the first answer of each example says, how many there are, and the divergence beside it."""
    return [
        (one.answers[0].answer.text, len(one.answers), one.rewards.divergences[0] if one.rewards else None)
        for one in examples.learned(directory, DEMO)[0]
    ]


DEMO = configuration.load(ROOT / "conf" / "demo.yaml", ["evaluation.examples=9"])


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    return RunDirectory(configuration.load(ROOT / "conf" / "demo.yaml", [f"run.dir={tmp_path}"]))


def test_the_group_that_was_rewarded_last_is_shown_with_its_own_answers(directory: RunDirectory) -> None:
    put(directory.stage(0), written("stored", 0), written("stored", 1))
    put(directory.online(0), *(written("fresh", place, 3, version=0) for place in (0, 1)))
    append_lines(directory.file("rewards.jsonl"), [rewards(1, 0.5, 3, version=0)])
    later = ("stored", 2, 0.1, None), ("fresh", 3, 0.2, 0), ("stored", 2, 0.3, None)
    for text, answers, divergence, version in later:
        append_lines(directory.file("rewards.jsonl"), [rewards(0, divergence, answers, version)])
        assert shown(directory) == [(text, answers, divergence), ("fresh", 3, 0.5)]


def test_rewards_without_their_group_or_without_a_number_for_each_answer_are_left_out(
    directory: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    """Version 2 was written over by version 3; position 2 was never stored; of position 3 an advantage is missing."""
    put(directory.stage(0), *(written("stored", position) for position in (0, 1, 3)))
    put(directory.online(0), written("fresh", 0, version=3))
    cut = rewards(3, 0.1) | {"advantages": [0.1]}
    append_lines(directory.file("rewards.jsonl"), [rewards(0, 0.1, version=2), rewards(1, 0.2), rewards(2, 0.1), cut])
    assert shown(directory) == [("stored", 2, 0.2)]
    assert "rewards.jsonl: not a number for each answer to p3: the report" in capsys.readouterr().out.replace("\n", " ")


def test_a_picture_that_is_gone_at_the_end_costs_its_place_in_the_report_and_nothing_else(tmp_path: Path) -> None:
    wide = Image.new("RGBA", (2000, 500), (0, 0, 0, 0))
    wide.save(tmp_path / "wide.tif")
    paths = [tmp_path / "wide.tif", tmp_path / "gone.png"]
    pictures = (Picture(data=png()), *(Picture(path=str(path)) for path in paths))
    small, large, gone = map(seen, pictures)
    assert small.startswith("data:image/png;base64,")
    with Image.open(io.BytesIO(base64.b64decode(large.removeprefix("data:image/jpeg;base64,")))) as thumbnail:
        assert (thumbnail.size, thumbnail.getpixel((0, 0))) == ((960, 240), (255, 255, 255))
    assert gone == f"picture {paths[1]} does not exist"


def answered(*answers: tuple[str, int, float, float], cut: bool = False) -> tuple[RolloutGroup, dict[str, Any]]:
    """A group whose label is red. answers: text, R_acc, R_distill and advantage; cut: the last one is."""
    made = [
        scored([5, place], text=text, accuracy=accuracy, finish="length" if cut and place == len(answers) else "stop")
        for place, (text, accuracy, *_) in enumerate(answers, 1)
    ]
    _, _, distillation, advantages = zip(*answers, strict=True)
    row = {"stage": 0, "position": 0, "divergences": [0.1] * len(answers), "distillation": list(distillation)}
    return group(made), row | {"advantages": list(advantages), "version": None}


RIGHT = ("red", 1, 0.0, 0.5)


@pytest.mark.parametrize(
    ("answers", "changes", "outranked", "reasons"),
    [
        ([RIGHT, ("blue", 0, 0.5, -0.5)], [], "", []),
        ([RIGHT, ("blue", 0, 1.0, 0.5)], [], "level", ["distillation"]),
        ([RIGHT, ("blue", 1, 0.2, 0.9)], [], "above", ["rewarded"]),
        ([("red", 0, 0.0, -1.0), ("blue", 0, 0.1, -0.8)], [], "above", ["denied"]),
        ([("red", 1, 0.0, -1.0), ("blue", 0, 0.1, -0.8)], [], "above", ["distillation"]),
        ([("blue", 0, 0.0, -1.0), ("red", 1, 0.0, -1.0)], ["reward.cut_answers=zero"], "level", ["cut"]),
        ([("blue", 0, 0.9, -0.4), ("red", 1, 0.0, 0.0), ("red", 1, 0.0, -0.5)], [], "above", ["distillation"]),
        ([("one red", 1, 0.0, 0.0), ("two red", 0, 1.0, 0.0)], [], "level", ["distillation"]),
    ],
)
def test_a_group_in_which_a_wrong_answer_outranks_a_right_one_is_counted_with_its_reason(
    directory: RunDirectory, answers: Any, changes: list[str], outranked: str, reasons: list[str]
) -> None:
    """The rule's word counts; where it calls all answers alike, as in the last case, the verdict's."""
    made, row = answered(*answers, cut=bool(changes))
    put(directory.stage(0), made)
    append_lines(directory.file("rewards.jsonl"), [row])
    config = configuration.load(ROOT / "conf" / "demo.yaml", changes)
    [shown], facts = examples.learned(directory, config)
    assert (shown.outranked, shown.reasons) == (outranked, reasons)
    assert shown.by_rule == [text == "red" for text, *_ in answers]
    assert (facts.groups, facts.mixed) == (1, 1)
    assert (facts.above, facts.level) == (int(outranked == "above"), int(outranked == "level"))
    marks = shown.by_rule if len(set(shown.by_rule)) > 1 else [bool(accuracy) for _, accuracy, *_ in answers]
    pairs = list(zip(marks, (advantage for *_, advantage in answers), strict=True))
    assert facts.reinforced == int(any(advantage > 0 and not right for right, advantage in pairs))
    assert facts.idle == int(outranked == "level" and not any(advantage for _, advantage in pairs))
    assert facts.reasons == dict.fromkeys(reasons, 1)
    assert facts.disputed == int([bool(accuracy) for _, accuracy, *_ in answers] != shown.by_rule)


def test_a_group_in_which_a_wrong_answer_is_ahead_is_shown_although_the_even_spread_misses_it(
    directory: RunDirectory,
) -> None:
    config: Config = configuration.load(ROOT / "conf" / "demo.yaml", ["evaluation.examples=2"])
    good, row = answered(RIGHT, ("blue", 0, 0.5, -0.5))
    bad, odd = answered(RIGHT, ("blue", 1, 0.2, 0.9))
    put(directory.stage(0), *(dataclasses.replace(bad if place == 2 else good, position=place) for place in range(4)))
    append_lines(
        directory.file("rewards.jsonl"), [(odd if place == 2 else row) | {"position": place} for place in range(4)]
    )
    shown, facts = examples.learned(directory, config)
    assert [one.rewards.position for one in shown if one.rewards] == [1, 3, 2]
    assert (facts.groups, facts.above) == (4, 1)


@pytest.mark.parametrize(
    ("improved", "regressed", "shown"), [(9, 9, (4, 2)), (9, 1, (5, 1)), (1, 9, (1, 5)), (0, 0, (0, 0))]
)
def test_regressions_are_shown_beside_improvements_with_the_teacher_s_answer(
    improved: int, regressed: int, shown: tuple[int, int]
) -> None:
    held_out = [problem(f"q{number}") for number in range(20)]

    def marks(right: Any) -> list[Marked]:
        said: dict[str, Any] = {"kind": "colour", "label": "red", "answer": "", "finish": "stop"}
        return [Marked(id=one.id, correct=right(number), **said) for number, one in enumerate(held_out)]

    marked = {"teacher": marks(bool), "student_before": marks(lambda one: one >= improved)}
    marked["student_after"] = marks(lambda one: one < 20 - regressed)
    found = examples.changed(held_out, marked, 6)
    verdicts = [(one.before.correct, one.after.correct) for one in found if one.before and one.after]
    assert (verdicts.count((False, True)), verdicts.count((True, False))) == shown
    assert [one.teacher.correct for one in found if one.teacher] == [one.id != "q0" for one in found]


def test_the_commit_of_code_is_told_and_whether_it_was_changed(tmp_path: Path) -> None:
    assert machine.code(tmp_path) == ""
    (tmp_path / "__init__.py").write_text("")

    def git(*words: str) -> str:
        who = ["-c", "user.name=x", "-c", "user.email=x@y"]
        return subprocess.run(["git", *who, *words], cwd=tmp_path, capture_output=True, text=True, check=True).stdout

    git("init", "-q")
    assert machine.code(tmp_path) == "", "a repository that does not track the code"
    git("add", ".")
    git("commit", "-qm", "first")
    assert machine.code(tmp_path) == git("rev-parse", "HEAD").strip()
    (tmp_path / "__init__.py").write_text("changed")
    assert machine.code(tmp_path) == git("rev-parse", "HEAD").strip() + "-dirty"
