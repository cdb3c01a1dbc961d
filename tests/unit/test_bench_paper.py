from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from bench import paper
from bench.paper import Assumed, Row, table
from masters_ray.simulation import Pool, Setup, simulate, spread
from tests.unit.test_simulation import call, exactly


@pytest.fixture(scope="module")
def rows() -> dict[float, Row]:
    return {row.share: row for row in table()}


def test_without_online_iterations_all_columns_say_the_papers_49_hours(rows: dict[float, Row]) -> None:
    row = rows[0.0]
    assert row.paper_hours == row.literal_hours == 49.0
    assert row.dedicated_gpus == 0
    assert row.dedicated_hours == pytest.approx(49.0, rel=1e-3)
    assert row.colocated_hours == pytest.approx(49.0, rel=1e-3)


def test_the_papers_rate_taken_literally(rows: dict[float, Row]) -> None:
    """10 %: 150,000 samples at 0.5 h per 1,000 are 75 h, and 0.9 · 49 h = 44.1 h. 100 %: 750 h, the paper's 31 days."""
    assert rows[0.1].literal_hours == exactly(119.1)
    assert rows[1.0].literal_hours / 24 == pytest.approx(31, abs=0.5)
    assert [rows[share].paper_hours for share in (0.05, 0.2, 0.5)] == [73.0, 148.0, None]


def test_dedicated_replicas_are_sized_to_the_learner(rows: dict[float, Row]) -> None:
    sized = [row for row in rows.values() if row.dedicated_gpus is not None]
    assert len(sized) == len(paper.SHARES)
    assert all(row.dedicated_hours <= 1.1 * 49 + 1e-6 for row in sized)
    counts = [row.dedicated_gpus or 0 for row in sized]
    assert counts == sorted(counts)


def test_turns_on_the_same_gpus_cost_at_least_the_rollouts(rows: dict[float, Row]) -> None:
    """At F.9's rates 4 + 4 answers to everything take half of 24 h and half of 14 h on the 256 GPUs."""
    for row in rows.values():
        assert row.colocated_hours >= 49 + row.share * (12 + 7) - 0.01


def whole_run(assumed: Assumed, share: float, gpus: int, **changes: Any) -> Setup:
    """Call by call, as ``paper.table`` shortens it."""
    teachers, students = paper.divided(assumed, gpus)
    setup = Setup(
        iterations=assumed.iterations,
        online=spread(assumed.iterations, share),
        groups_per_step=assumed.groups_per_step,
        batch_rows=assumed.batch_rows,
        max_staleness=assumed.max_staleness,
        max_wait_seconds=math.inf,
        calls=(
            call("teacher", 0.0, assumed.teacher_gpu_seconds / assumed.teacher_gpus),
            call("student", 0.0, assumed.student_gpu_seconds),
        ),
        pools={"teacher": Pool(replicas=teachers), "student": Pool(replicas=students)},
        learner_seconds=assumed.learner_seconds,
        publish_seconds=assumed.handover_seconds,
        load_seconds=assumed.handover_seconds,
        start_seconds=0.0,
    )
    return dataclasses.replace(setup, **changes)


def test_one_call_for_all_of_an_iterations_calls_gives_the_same_hours_and_one_gpu_less_would_not_do() -> None:
    """59 iterations of 25,600 questions in 128 batches, with weights that take a hundred seconds each way."""
    assumed = Assumed(groups_per_step=25600, batch_rows=200, link_bytes_per_second=1.6e8, max_staleness=2)
    assert (assumed.iterations, assumed.handover_seconds) == (59, exactly(100.0))
    found = {row.share: row for row in table(assumed)}
    for share in (0.1, 0.5):
        row = found[share]
        gpus = row.dedicated_gpus or 0
        assert simulate(whole_run(assumed, share, gpus)).wall_seconds / 3600 == exactly(row.dedicated_hours)
        assert simulate(whole_run(assumed, share, gpus - 1)).wall_seconds / 3600 > 1.1 * 49
        turns = whole_run(assumed, share, 256, max_staleness=0, colocated=True, wake_seconds=assumed.wake_seconds)
        assert simulate(turns).wall_seconds / 3600 == exactly(row.colocated_hours)


def test_where_handing_over_costs_too_much_no_number_of_gpus_is_enough() -> None:
    """100 s to publish are a third of a step of 301 s: too much for every iteration, not for each twentieth."""
    found = {row.share: row for row in table(Assumed(groups_per_step=2560, batch_rows=20, link_bytes_per_second=1.6e8))}
    assert found[1.0].dedicated_gpus is None
    assert found[1.0].dedicated_hours > 1.1 * 49
    assert found[0.05].dedicated_gpus is not None


def test_the_papers_table_in_columns() -> None:
    one = Row(
        share=0.05,
        paper_hours=73.0,
        literal_hours=84.05,
        dedicated_gpus=12,
        dedicated_hours=53.7,
        colocated_hours=51.3,
    )
    two = dataclasses.replace(one, share=1.0, paper_hours=None, literal_hours=750.0, dedicated_gpus=None)
    assert list(paper.lines([one, two]))[:3] == [
        "online  paper  paper's rate  GPUs beside   hours  same 256 GPUs",
        "   5 %   73 h          84 h           12  53.7 h         51.3 h",
        " 100 %      –         750 h   not enough  53.7 h         51.3 h",
    ]
