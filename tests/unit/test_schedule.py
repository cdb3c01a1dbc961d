from masters_ray.schedule import split, stages


def ratios(max_ratio: float, step: float) -> list[float]:
    return [stage.ratio for stage in stages(max_ratio, step)]


def test_the_papers_default_has_five_stages() -> None:
    assert ratios(0.2, 0.05) == [0.2, 0.15, 0.1, 0.05, 0.0]


def test_the_ratio_of_every_iteration_is_that_of_the_papers_formula() -> None:
    import math

    iterations, max_ratio, step = 100, 0.4, 0.1
    count = round(max_ratio / step) + 1
    shares = split(iterations, count, "share")
    for stage, share in zip(stages(max_ratio, step), shares, strict=True):
        for i in share:
            expected = max(0.0, max_ratio - step * math.floor(i * count / iterations))
            assert abs(stage.ratio - expected) < 1e-9


def test_no_masking_is_one_stage() -> None:
    assert ratios(0.0, 0.05) == [0.0]


def test_shares_are_one_pass_and_all_is_every_row_in_every_stage() -> None:
    assert split(5, 3, "share") == [range(1), range(1, 3), range(3, 5)]
    assert split(2, 2, "all") == [range(2), range(2)]
