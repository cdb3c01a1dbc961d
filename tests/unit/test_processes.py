"""Which processes run, in each phase."""

from collections.abc import Sequence

import pytest

from masters_ray import config
from masters_ray.replicas import processes
from masters_ray.replicas.processes import Processes
from tests.conftest import ROOT


def loaded(words: str) -> config.Config:
    return config.load(ROOT / "conf" / "demo.yaml", words.split())


def listed(found: Sequence[Processes]) -> str:
    """Example: ``teacher 1, student+judge 1``."""
    return ", ".join(f"{'+'.join(one.roles)} {one.count}" for one in found)


TEACHER_JUDGES = "judge.of_teacher=teacher judge.of_student=teacher judge.replicas=2"
RULE_JUDGES = "judge.of_teacher=rule judge.of_student=rule"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("", "teacher 1, student+judge 1"),
        ("teacher.replicas=2 judge.replicas=2", "teacher 2, student+judge 1, judge 1"),
        ("student.replicas=3 judge.replicas=1", "teacher 1, student+judge 1, student 2"),
        ("judge.share_process=false", "teacher 1, student 1, judge 1"),
        (TEACHER_JUDGES, "teacher 1, teacher_judge 2, student 1"),
        (RULE_JUDGES, "teacher 1, student 1"),
    ],
)
def test_student_and_judge_share_processes_as_far_as_there_are_both(words: str, expected: str) -> None:
    assert listed(processes.for_rollouts(loaded(words), learned=False)) == expected


@pytest.mark.parametrize(
    ("words", "making", "online"),
    [
        ("student.replicas=2", "student 2, reference+judge 1", "student 2, reference+judge 1"),
        ("judge.follows_student=true", "student 1, reference+judge 1", "student+judge 1, reference 1"),
        (RULE_JUDGES, *["student 1, reference+judge 1"] * 2),
    ],
)
def test_a_student_that_has_learned_writes_beside_the_reference_that_judges(
    words: str, making: str, online: str
) -> None:
    config = loaded(words)
    assert listed(processes.for_rollouts(config, learned=True)) == f"teacher 1, {making}"
    assert listed(processes.for_online_rollouts(config)) == f"teacher 1, {online}"


@pytest.mark.parametrize(("who", "expected"), [("rule", "student 1"), ("judge", "student 1, judge 1")])
def test_the_trained_student_is_measured_beside_the_judge_unless_the_rule_marks(who: str, expected: str) -> None:
    assert listed(processes.for_measuring(loaded(f"evaluation.marked_by={who}"))) == expected


def test_processes_reserve_what_all_their_ranks_need() -> None:
    config = loaded("teacher.gpus=1 teacher.tensor_parallel=2")
    assert [(one.cpus, one.gpus) for one in processes.for_rollouts(config, learned=False)] == [(0.5, 2), (0.5, 0)]
