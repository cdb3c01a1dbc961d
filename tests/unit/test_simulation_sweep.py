from __future__ import annotations

import pytest

from masters_ray.errors import ConfigError
from masters_ray.simulation import Case, lines, simulate, spread, sweep
from tests.unit.test_simulation import INSTANT, changed, exactly


def test_a_sweep_runs_every_share_with_every_choice_of_replicas() -> None:
    """10 on-policy iterations of 10 s (batches of 3 s) with one replica or two."""
    base = changed(INSTANT, groups_per_step=8)
    cases = sweep(base, [0.0, 0.2], [{}, {"student": 2}])
    assert [(case.share, dict(case.replicas)) for case in cases] == [
        (0.0, {"student": 1}),
        (0.0, {"student": 2}),
        (0.2, {"student": 1}),
        (0.2, {"student": 2}),
    ]
    assert [case.outcome.wall_seconds for case in cases] == [20, 20, exactly(32), exactly(26)]
    with pytest.raises(ConfigError, match=r"replicas of judge: expected a pool that there is.*Pools: student"):
        sweep(base, [0.2], [{"judge": 2}])


def test_online_iterations_are_spread_as_a_run_spreads_them() -> None:
    assert spread(10, 0.2) == (3, 8)
    assert spread(3, 1.0) == (1, 2, 3)
    assert spread(3, 0.0) == ()


def test_runs_stand_in_columns() -> None:
    offline, online = simulate(changed(online=())), simulate(changed(max_staleness=1))
    cases = [
        Case(share=0.0, replicas={"student": 1}, outcome=offline),
        Case(share=0.1, replicas={"student": 1}, outcome=online),
    ]
    assert list(lines(cases)) == [
        "online  student    wall  slower  learner busy  waited  student busy  mean age  oldest  fresh  stored  syncs",
        "   0 %        1  24.0 s  1.00 ×          83 %   0.0 s           0 %         –       –      0       0      0",
        "  10 %        1  25.8 s  1.07 ×          78 %   1.2 s          13 %       1.0       1      1       0      1",
    ]
    with pytest.raises(ValueError, match="at least one run"):
        list(lines([]))
