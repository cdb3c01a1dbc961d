import math
from fractions import Fraction

import pytest

from masters_ray.config import Schedule, ScheduledStage
from masters_ray.method import schedule
from masters_ray.method.schedule import Stage, plan, ratios


@pytest.mark.parametrize(("largest", "expected"), [(0.2, [0.2, 0.15, 0.1, 0.05, 0.0]), (0.0, [0.0])])
def test_ratios_fall_to_0_and_the_papers_default_has_five_stages(largest: float, expected: list[float]) -> None:
    equal = Fraction(1, len(expected))
    assert ratios(Schedule(max_ratio=largest, step=0.05)) == [(ratio, equal) for ratio in expected]


def test_the_ratio_of_every_iteration_is_that_of_the_papers_formula() -> None:
    iterations, max_ratio, step = 100, 0.4, 0.1
    count = round(max_ratio / step) + 1
    for stage, positions in plan([Schedule(max_ratio=max_ratio, step=step)], iterations):
        for i in positions:
            expected = max(0.0, max_ratio - step * math.floor(i * count / iterations))
            assert abs(stage.ratio - expected) < 1e-9


def test_shares_are_one_pass_and_all_is_every_row_in_every_stage() -> None:
    assert [part for _, part in plan([Schedule(max_ratio=0.2, step=0.1)], 5)] == [range(1), range(1, 3), range(3, 5)]
    all_data = Schedule(max_ratio=0.1, step=0.1, stage_data="all")
    assert [part for _, part in plan([all_data], 2)] == [range(2), range(2)]


def test_ratios_and_shares_can_be_listed() -> None:
    listed = [(0.3, 0.5), (0.1, 0.3), (0.3, 0.2)]
    found = plan([Schedule(stages=[ScheduledStage(ratio=ratio, share=share) for ratio, share in listed])], 10)
    stages = [Stage(index=index, ratio=ratio) for index, (ratio, _) in enumerate(listed)]
    assert found == list(zip(stages, [range(5), range(5, 8), range(8, 10)], strict=True))
    equal = plan([Schedule(stages=[ScheduledStage(ratio=0.2), ScheduledStage(ratio=0.0)])], 9)
    assert [part for _, part in equal] == [range(4), range(4, 9)]


def test_teachers_run_their_schedules_one_after_the_other_on_equal_parts() -> None:
    found = plan([Schedule(max_ratio=0.2, step=0.2), Schedule(max_ratio=0.2, step=0.1)], 12)
    stages = [(stage.index, stage.teacher, stage.ratio) for stage, _ in found]
    assert stages == [(0, 0, 0.2), (1, 0, 0.0), (2, 1, 0.2), (3, 1, 0.1), (4, 1, 0.0)]
    assert [part for _, part in found] == [range(3), range(3, 6), range(6, 8), range(8, 10), range(10, 12)]


@pytest.mark.parametrize("fraction", [0.0, 0.05, 0.15, 0.7, 1.0])
def test_online_iterations_are_spread_evenly_and_their_share_is_as_exact_as_can_be(fraction: float) -> None:
    online = 0
    for iterations in range(1, 301):
        online += schedule.is_online(iterations, fraction)
        assert abs(online - iterations * fraction) <= 0.5 + 1e-9
    assert [number for number in range(1, 20) if schedule.is_online(number, 0.2)] == [3, 8, 13, 18]


def test_an_iteration_never_crosses_a_stage() -> None:
    """Stages of 5 and 3 questions, 2 a step: 2, 2, 1 and 2, 1; with a half the iterations 1, 3 and 5 are online."""
    stages = [(Stage(index=0, ratio=0.2), range(5)), (Stage(index=1, ratio=0.0), range(5, 8))]
    found = schedule.iterations(stages, 2, 0.5)
    assert [one.number for one in found] == [1, 2, 3, 4, 5]
    asked = [(one.stage, list(one.positions)) for one in found]
    assert asked == [(0, [0, 1]), (0, [2, 3]), (0, [4]), (1, [5, 6]), (1, [7])]
    assert [one.number for one in found if one.online] == [1, 3, 5]


def test_the_oldest_student_that_may_writes() -> None:
    assert [schedule.version_for(number, 0) for number in (1, 2, 9)] == [0, 1, 8]
    assert [schedule.version_for(number, 4) for number in (1, 5, 6, 9)] == [0, 0, 1, 4]
    assert schedule.version_for(9, 4, learned=6) == 6, "a learner that goes on has no older one"


@pytest.mark.parametrize(
    ("every", "last", "expected"),
    [
        (None, True, []),
        ("stage", False, [3]),
        ("stage", True, [3, 5]),
        ("2", False, [2, 4]),
        ("2", True, [2, 4, 5]),
        ("5", False, []),
        ("9", True, [5]),
    ],
)
def test_the_student_is_measured_at_ends_of_stages_or_at_multiples_but_the_last_step(
    every: str | None, last: bool, expected: list[int]
) -> None:
    stages = [(Stage(index=0, ratio=0.2), range(5)), (Stage(index=1, ratio=0.0), range(5, 8))]
    assert schedule.evaluated(schedule.iterations(stages, 2, 0.0), every, last) == expected
