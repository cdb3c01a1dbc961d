"""The studies in conf/study have the rows of the paper's tables (appendix F.6 to F.8), by what their runs do."""

from __future__ import annotations

import json

import pytest

from masters_ray import config as configuration
from masters_ray.config import Config
from masters_ray.schedule import ratios
from masters_ray.studies import study as studies
from tests.conftest import ROOT


def study(name: str) -> studies.Study:
    return studies.read(str(ROOT / "conf" / "study" / name))


def rows(name: str) -> list[Config]:
    """Each variant's configuration, in the order of the file."""
    read = study(name)
    return [
        configuration.load(ROOT / read.base, [f"{key}={json.dumps(value)}" for key, value in changes.items()])
        for changes in ({**read.changes, **own} for own in read.variants.values())
    ]


def masked(config: Config) -> bool:
    return any(ratio for ratio, _ in ratios(config.schedule))


def rewards(config: Config) -> tuple[str, ...]:
    """What the student is reinforced for."""
    if not config.learner.policy_weight:
        return ()
    return ("R_acc", "R_distill") if config.reward.alpha else ("R_acc",)


@pytest.mark.parametrize("name", ["components.yaml", "real_components.yaml"])
def test_the_components_are_the_five_rows_of_f8(name: str) -> None:
    found = rows(name)
    assert [(masked(config), rewards(config)) for config in found] == [
        (False, ()),
        (True, ()),
        (False, ("R_acc",)),
        (False, ("R_acc", "R_distill")),
        (True, ("R_acc", "R_distill")),
    ]
    assert all(config.learner.jsd_weight == 1 for config in found), "all of them distil"
    assert {config.reward.alpha for config in found if "R_distill" in rewards(config)} == {1}


def test_the_judges_are_the_three_rows_of_f7_and_two_more() -> None:
    found = {(config.judge.of_student, config.judge.of_teacher) for config in rows("judge.yaml")}
    paper = {("student", "teacher"), ("teacher", "teacher"), ("student", "student")}
    assert found == paper | {("teacher", "student"), ("rule", "rule")}


def test_the_sources_are_the_three_rows_of_f6_with_both_rewards() -> None:
    found = rows("sources.yaml")
    splits = [(config.rollout.student_answers, config.rollout.teacher_answers) for config in found]
    assert splits == [(8, 0), (4, 4), (0, 8)]
    assert {rewards(config) for config in found} == {("R_acc", "R_distill")}


@pytest.mark.parametrize("name", ["components.yaml", "judge.yaml", "sources.yaml"])
def test_rows_differ_in_nothing_but_what_their_table_compares(name: str) -> None:
    compared = {
        "components.yaml": {"schedule.max_ratio", "learner.policy_weight", "reward.alpha"},
        "judge.yaml": {"judge.of_teacher", "judge.of_student"},
        "sources.yaml": {"rollout.teacher_answers", "rollout.student_answers"},
    }
    assert {key for changes in study(name).variants.values() for key in changes} == compared[name]
