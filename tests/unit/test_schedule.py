import math

from masters_ray.config import Schedule, ScheduledStage
from masters_ray.schedule import plan, ratios


def test_the_papers_default_has_five_stages() -> None:
    assert [ratio for ratio, _ in ratios(Schedule(max_ratio=0.2, step=0.05))] == [0.2, 0.15, 0.1, 0.05, 0.0]


def test_the_ratio_of_every_iteration_is_that_of_the_papers_formula() -> None:
    iterations, max_ratio, step = 100, 0.4, 0.1
    count = round(max_ratio / step) + 1
    for stage, positions in plan([Schedule(max_ratio=max_ratio, step=step)], iterations):
        for i in positions:
            expected = max(0.0, max_ratio - step * math.floor(i * count / iterations))
            assert abs(stage.ratio - expected) < 1e-9


def test_no_masking_is_one_stage() -> None:
    assert ratios(Schedule(max_ratio=0.0, step=0.05)) == [(0.0, 1)]


def test_shares_are_one_pass_and_all_is_every_row_in_every_stage() -> None:
    assert [part for _, part in plan([Schedule(max_ratio=0.2, step=0.1)], 5)] == [range(1), range(1, 3), range(3, 5)]
    all_data = Schedule(max_ratio=0.1, step=0.1, stage_data="all")
    assert [part for _, part in plan([all_data], 2)] == [range(2), range(2)]


def test_ratios_and_shares_can_be_listed() -> None:
    listed = [
        ScheduledStage(ratio=0.3, share=0.5),
        ScheduledStage(ratio=0.1, share=0.3),
        ScheduledStage(ratio=0.3, share=0.2),
    ]
    found = plan([Schedule(stages=listed)], 10)
    assert [(stage.index, stage.ratio, part) for stage, part in found] == [
        (0, 0.3, range(5)),
        (1, 0.1, range(5, 8)),
        (2, 0.3, range(8, 10)),
    ]
    equal = plan([Schedule(stages=[ScheduledStage(ratio=0.2), ScheduledStage(ratio=0.0)])], 9)
    assert [part for _, part in equal] == [range(4), range(4, 9)]


def test_teachers_run_their_schedules_one_after_the_other_on_equal_parts() -> None:
    found = plan([Schedule(max_ratio=0.2, step=0.2), Schedule(max_ratio=0.2, step=0.1)], 12)
    assert [(stage.index, stage.teacher, stage.ratio) for stage, _ in found] == [
        (0, 0, 0.2),
        (1, 0, 0.0),
        (2, 1, 0.2),
        (3, 1, 0.1),
        (4, 1, 0.0),
    ]
    assert [part for _, part in found] == [range(3), range(3, 6), range(6, 8), range(8, 10), range(10, 12)]
