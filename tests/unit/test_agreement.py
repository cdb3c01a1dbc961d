"""Learner and engine are compared row by row."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from masters_ray import store
from masters_ray.batching import micro_batches
from masters_ray.config import Learner
from masters_ray.errors import LearnerError
from masters_ray.learner.agreement import check_on_policy, compared, largest_gap, row_gaps, sample
from masters_ray.learner.feed import Part, Step, own_parts
from masters_ray.learner.job import StagePlan
from masters_ray.packing import PackedBatch
from masters_ray.schedule import Iteration
from tests.builders import group
from tests.unit.test_feed import lacking, packed


def part(rows: int, *unreadable: int, version: int | None = None) -> Part:
    table = store.table_of([replace(group(position=place), version=version) for place in range(rows)])
    tokens = store.sequence_tokens(table)
    step = Step(
        plan=StagePlan(stage=0, ratio=0.2, rows=rows),
        iteration=Iteration(number=4, stage=0, positions=range(rows)),
        table=table,
        tokens=tokens,
        answer_tokens=store.answer_tokens(table),
        rounds=micro_batches(tokens, 1, 60),
    )
    [found] = own_parts([step], 0, lacking(*unreadable) if unreadable else packed)
    return found


def learner(found: Part, apart: Mapping[int, float]) -> dict[int, Tensor]:
    """What the learner gives to the tokens of each micro-batch, by its identity: rows are ``apart`` by so much at one
    of their five tokens."""
    given = {}
    for micro in found.micro_batches:
        row = micro.batch.group_of[micro.batch.answer_of]
        own = micro.batch.reference_logprobs.clone()
        for place, index in enumerate(micro.indices):
            own[(row == place).nonzero()[2]] -= apart.get(index, 0.0)
        given[id(micro.batch)] = own
    return given


def agreed(found: Part, apart: Mapping[int, float], bound: float = 0.1) -> object:
    given = learner(found, apart)

    def logprobs(batch: PackedBatch) -> Tensor:
        return given[id(batch)]

    return compared(found, logprobs, lambda values: values, bound)


def test_the_row_that_is_furthest_apart_is_told_whatever_the_mean_over_all_rows() -> None:
    found = agreed(part(40), {7: 0.25, 3: 0.1})
    assert isinstance(found, tuple)
    agreement, reasons = found
    assert (agreement.stage, agreement.rows, agreement.row, agreement.apart) == (0, 40, "p7", 0)
    assert agreement.mean_gap == pytest.approx(0.25 / 5) and agreement.token_gap == pytest.approx(0.25)
    assert reasons == {}


@pytest.mark.parametrize("gap", [0.6, math.nan, math.inf])
def test_one_row_that_is_apart_is_left_out_and_several_stop_the_learner_with_its_name(gap: float) -> None:
    found = agreed(part(40), {7: gap})
    assert isinstance(found, tuple)
    assert found[0].row == "p7" and found[0].apart == 1 and list(found[1]) == [7]
    assert "nats per token apart on it, more than 0.1; did its picture change" in found[1][7]
    causes = "checkpoint.*processor files.*template.*pictures.*start or end tokens.*kernels.*quantised.*windows"
    with pytest.raises(LearnerError, match=rf"in 2 of 40 rows, most in p7 \(.*{causes}.*learner.max_logprob_gap"):
        agreed(part(40), {7: gap, 30: 0.55})


def test_of_many_rows_one_percent_may_be_apart() -> None:
    assert isinstance(agreed(part(201), {7: 9.0, 150: 9.0}), tuple)
    with pytest.raises(LearnerError, match="in 3 of 201 rows"):
        agreed(part(201), {7: 9.0, 150: 9.0, 200: 9.0})


def test_rows_that_cannot_be_read_are_not_compared_and_none_at_all_stops_the_learner() -> None:
    found = agreed(part(5, 2), {})
    assert isinstance(found, tuple) and found[0].rows == 4
    with pytest.raises(
        LearnerError, match=r"can read none of 3 rows of stage 0 \(p., stage 0, position .: its picture"
    ):
        agreed(part(3, 0, 1, 2), {})
    assert agreed(part(1, 0), {}) is None


def test_the_bound_goes_by_the_coarser_number_format_unless_it_is_given() -> None:
    assert largest_gap(Learner(dtype="float32"), "float32") == 0.01
    assert largest_gap(Learner(dtype="float32"), "bfloat16") == largest_gap(Learner(dtype="bfloat16"), "float32") == 0.1
    assert largest_gap(Learner(dtype="float32", max_logprob_gap=0.5), "float16") == 0.5


@pytest.mark.parametrize(("shards", "rows", "expected"), [(1, 200, 64), (3, 200, 66), (30, 16, 64), (30, 2, 60)])
def test_a_sample_has_64_rows_from_all_over_the_stage_or_all_that_there_are(
    shards: int, rows: int, expected: int, tmp_path: Path
) -> None:
    writer = store.Writer(tmp_path, {})
    one = store.table_of([group(position=place) for place in range(rows)])
    places = one.schema.get_field_index("position")
    for number in range(shards):
        moved = one.set_column(places, one.schema.field(places), [[number * rows + place for place in range(rows)]])
        asked = {number * rows + place: "digest" for place in range(rows)}
        writer.write(moved, store.Account(asked=asked, rejected={}, noted={}))
    writer.finish({})
    found = sample(tmp_path)
    positions = found["position"].to_pylist()
    assert len(set(positions)) == len(positions) == expected
    assert found.equals(sample(tmp_path))
    quarters = {place * 4 // (shards * rows) for place in positions}
    assert quarters == {0, 1, 2, 3}


def test_fresh_answers_of_the_weights_that_learn_from_them_must_be_the_engines_own() -> None:
    def gaps(*means: float) -> Tensor:
        return torch.tensor([[5 * mean, 5.0, mean] for mean in means])

    check_on_policy(part(3, version=3).step, gaps(1e-6, 2e-6, 1e-6), 0.1)
    check_on_policy(part(3, version=2).step, gaps(5.0, 5.0, 5.0), 0.1)  # the student has moved since
    check_on_policy(part(3).step, torch.zeros(3, 3), 0.1)
    check_on_policy(part(3, version=3).step, gaps(1e-6, 5.0, 1e-6), 0.1)
    with pytest.raises(LearnerError, match="step 4: .* by more than 0.1 nats per token in 2 rows, most in p1 \(0.3\)"):
        check_on_policy(part(3, version=3).step, gaps(0.2, 0.3, 1e-6), 0.1)


def test_the_distance_of_a_row_is_over_its_own_tokens() -> None:
    [micro] = part(2).micro_batches
    own = micro.batch.reference_logprobs.clone()
    own[5:] += torch.tensor([0.0, 0.5, 0.0, -1.0, 0.0])
    assert row_gaps(own, micro.batch.reference_logprobs, micro.batch).tolist() == [[0, 5, 0], [1.5, 5, 1]]
