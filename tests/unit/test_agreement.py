import math
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from masters_ray.config import Learner
from masters_ray.errors import LearnerError
from masters_ray.learner.agreement import Mismatch, check_fresh, compare, largest_gap, sample
from masters_ray.learner.batches import Step
from masters_ray.learner.collate import WorkerStep
from masters_ray.learner.job import StagePlan
from tests.builders import group, table_of, written
from tests.tensors import own_steps


def part(rows: int, *unreadable: int, version: int | None = None) -> WorkerStep:
    table = table_of([replace(group(position=place), version=version) for place in range(rows)])
    step = Step(plan=StagePlan(stage=0, ratio=0.2, rows=rows), number=4, table=table)
    [found] = own_steps([step], *unreadable)
    return found


def agreed(found: WorkerStep, apart: Mapping[int, float], bound: float = 0.1) -> Mismatch | None:
    """Where the learner is ``apart`` from the engine by so much at one of the five tokens of a row."""
    given = {}
    for micro in found.micro_batches:
        row = micro.batch.group_of[micro.batch.answer_of]
        given[id(micro.batch)] = own = micro.batch.reference_logprobs.clone()
        for place, index in enumerate(micro.indices):
            own[(row == place).nonzero()[2]] -= apart.get(index, 0.0)
    return compare(found, lambda batch: given[id(batch)], lambda values: values, bound)


def test_the_row_that_is_furthest_apart_is_told_whatever_the_mean_over_all_rows() -> None:
    found = agreed(part(40), {7: 0.25, 3: 0.1})
    assert found
    agreement, reasons = found
    assert (agreement.stage, agreement.rows, agreement.row, agreement.apart) == (0, 40, "p7", 0)
    assert agreement.mean_gap == pytest.approx(0.25 / 5) and agreement.token_gap == pytest.approx(0.25)
    assert reasons == {}


@pytest.mark.parametrize("gap", [0.6, math.nan, math.inf])
def test_one_row_or_one_percent_may_be_apart_and_more_stop_the_learner_with_the_rows_name(gap: float) -> None:
    assert agreed(part(201), {7: 9.0, 150: gap})
    found = agreed(part(40), {7: gap})
    assert found
    assert found[0].row == "p7" and found[0].apart == 1 and list(found[1]) == [(0, 7)]
    assert "nats per token apart on it, more than 0.1; did its picture change" in found[1][0, 7]
    causes = "checkpoint.*processor files.*template.*start or end tokens.*pictures"
    with pytest.raises(LearnerError, match=rf"in 2 of 40 rows, most in p7 \(.*{causes}.*learner.max_logprob_gap"):
        agreed(part(40), {7: gap, 30: 0.55})


def test_rows_that_cannot_be_read_are_not_compared_and_none_at_all_stops_the_learner() -> None:
    found = agreed(part(5, 2), {})
    assert found and found[0].rows == 4
    with pytest.raises(LearnerError, match="can read none of 3 rows of stage 0: p., stage 0, position .: its"):
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
    made = [[group(position=number * rows + place) for place in range(rows)] for number in range(shards)]
    written(tmp_path, {}, *made).finish({})
    positions = sample(tmp_path)["position"].to_pylist()
    assert len(set(positions)) == len(positions) == expected
    assert {place * 4 // (shards * rows) for place in positions} == {0, 1, 2, 3}


@pytest.mark.parametrize(
    ("version", "means", "told"),
    [
        (3, (1e-6, 5.0, 1e-6), ""),
        (3, (0.2, 0.3, 1e-6), r"step 4: .* by more than 0.1 nats per token in 2 of 3 rows, most in p1 \(0.3"),
        (3, (0.2,), "in 1 of 1 rows"),
        (2, (5.0, 5.0, 5.0), ""),  # the student has moved since
    ],
)
def test_fresh_answers_of_the_weights_that_learn_from_them_must_be_the_engines_own(
    version: int, means: tuple[float, ...], told: str
) -> None:
    gaps = torch.tensor([[5 * mean, 5.0, mean] for mean in means])
    with pytest.raises(LearnerError, match=told) if told else nullcontext():
        check_fresh(part(len(means), version=version).step, gaps, 0.1)
