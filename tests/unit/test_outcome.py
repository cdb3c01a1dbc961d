import base64
import dataclasses
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from masters_ray import config as configuration
from masters_ray import store
from masters_ray.files import append_lines
from masters_ray.learner.job import GroupRewards
from masters_ray.pipeline.outcome import _example, _learned, _online
from masters_ray.pipeline.run_dir import RunDirectory
from masters_ray.records import Picture, RolloutGroup
from tests import builders
from tests.builders import group, png, problem, scored, step
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
        for one in _learned(directory, 9)
    ]


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
    small, large, gone = _example(dataclasses.replace(problem(), pictures=pictures), answers=[]).pictures
    assert small.startswith("data:image/png;base64,")
    with Image.open(io.BytesIO(base64.b64decode(large.removeprefix("data:image/jpeg;base64,")))) as thumbnail:
        assert (thumbnail.size, thumbnail.getpixel((0, 0))) == ((960, 240), (255, 255, 255))
    assert gone == f"picture {paths[1]} does not exist"


def test_ages_are_those_of_groups_and_waiting_counts_every_step() -> None:
    """Steps 2 and 4 have no fresh group: 2 is offline, the groups of 4 came too late."""
    fresh = [(1, 3, 1.0), (2, 0, 0.0), (3, 1, 3.0), (4, 0, 0.0)]
    steps = [step(number, fresh=groups, age=age, rollout_wait_s=0.5) for number, groups, age in fresh]
    found = _online(steps, "beside")
    assert (found.largest_age, found.mean_age, found.steps, found.waited_seconds) == (3.0, 1.5, 2, 2.0)
    assert (found.groups, found.share) == (4, 0.5)
    offline = _online(steps[1:2], None)
    assert (offline.largest_age, offline.mean_age) == (None, None)
