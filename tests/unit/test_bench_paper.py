from __future__ import annotations

import pytest

from bench import paper
from bench.paper import Assumed, Row, table
from tests.unit.test_plan_rates import exactly


@pytest.fixture(scope="module")
def rows() -> dict[float, Row]:
    return {row.share: row for row in table()}


def test_without_online_iterations_all_columns_say_the_papers_49_hours(rows: dict[float, Row]) -> None:
    row = rows[0.0]
    assert row.paper_hours == row.literal_hours == 49.0
    assert row.dedicated == (0, 49.0)
    assert row.colocated_hours == exactly(49.0)


def test_the_papers_rate_taken_literally(rows: dict[float, Row]) -> None:
    """10 %: 150,000 samples at 0.5 h per 1,000 are 75 h, and 0.9 · 49 h = 44.1 h. 100 %: 750 h, the paper's 31 days."""
    assert rows[0.1].literal_hours == exactly(119.1)
    assert rows[1.0].literal_hours / 24 == pytest.approx(31, abs=0.5)
    assert [rows[share].paper_hours for share in (0.05, 0.2, 0.5)] == [73.0, 148.0, None]


def test_dedicated_replicas_are_sized_to_the_learner(rows: dict[float, Row]) -> None:
    counts = [row.dedicated[0] for row in rows.values()]
    assert counts == [0, 12, 13, 16, 19, 51, 115]
    assert all(row.dedicated[1] <= 1.1 * 49 for row in rows.values())
    assert paper.hours(Assumed(), 1.0, 114) > 1.1 * 49, "a GPU less would not do"


def test_turns_on_the_same_gpus_cost_at_least_the_rollouts(rows: dict[float, Row]) -> None:
    """At F.9's rates 4 + 4 answers to everything take half of 24 h and half of 14 h on the 256 GPUs."""
    for row in rows.values():
        assert row.colocated_hours >= 49 + row.share * (12 + 7) - 0.01


def test_where_handing_over_costs_too_much_no_number_of_gpus_is_enough() -> None:
    """100 s to publish are a third of a step of 301 s: too much for every iteration, not for each twentieth."""
    assumed = Assumed(groups_per_step=2560, batch_rows=20, link_bytes_per_second=1.6e8)
    assert assumed.handover_seconds == exactly(100.0)
    found = {row.share: row.dedicated for row in table(assumed)}
    assert found[1.0][0] is None and found[1.0][1] > 1.1 * 49
    assert found[0.05][0] is not None


def test_the_papers_table_in_columns() -> None:
    one = Row(share=0.05, paper_hours=73.0, literal_hours=84.05, dedicated=(12, 53.7), colocated_hours=51.3)
    two = Row(share=1.0, paper_hours=None, literal_hours=750.0, dedicated=(None, 53.7), colocated_hours=51.3)
    assert list(paper.lines([one, two]))[:3] == [
        "online  paper  paper's rate  GPUs beside   hours  same 256 GPUs",
        "   5 %   73 h          84 h           12  53.7 h         51.3 h",
        " 100 %      –         750 h   not enough  53.7 h         51.3 h",
    ]
