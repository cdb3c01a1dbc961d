"""What a worker adds up over its micro-batches is told as one step."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from masters_ray.learner.collate import MicroBatch
from masters_ray.learner.metrics import step_totals
from masters_ray.method.grpo import LossOutputs, group_losses
from masters_ray.records import RolloutGroup
from tests.builders import group, scored
from tests.tensors import loss_config, packed


def test_each_group_counts_in_its_own_place_and_a_dummy_nowhere() -> None:
    stored = group([scored([5, 1]), scored([6, 7, 1], accuracy=0)], position=3)
    wrote = (replace(one, behaviour_logprobs=one.reference_logprobs) for one in stored.answers)
    fresh = replace(stored, version=7, position=4, answers=tuple(wrote))

    def made(indices: list[int], *rows: RolloutGroup) -> tuple[MicroBatch, LossOutputs, Tensor]:
        batch = packed(rows)
        new = batch.reference_logprobs + 0.5
        student = new, torch.arange(len(new)) / 10.0, torch.zeros(len(new))
        outputs = group_losses(*loss_config(), batch, student, 5.0)
        return MicroBatch(indices=indices, groups=list(rows), batch=batch), outputs, new

    dummy, one, two = made([], fresh), made([2], stored), made([1, 0], fresh, stored)
    totals = step_totals(3, [dummy, one, two], lambda values: values, operations=7, rank=1, workers=2)
    lengths = [micro.batch.layout.length for micro, *_ in (dummy, one, two)]
    assert (totals.operations, totals.capacity) == (7, 2 * sum(lengths)), "as if the other worker took as long"
    assert totals.losses == [*two[1].loss.flip(0).tolist(), *one[1].loss.tolist()]
    assert totals.metrics["loss"] == pytest.approx(sum(totals.losses) / 3)
    assert totals.gaps.tolist() == [[0, 0, 0], [2.5, 5, 0.5], [0, 0, 0]]
    assert totals.metrics["logprob_mismatch"] == 0.5
    assert [(told.position, told.version) for told in totals.rewards] == [(3, None), (4, 7)]
    assert totals.rewards[0].divergences == one[1].divergences.tolist()
    assert totals.rewards[1].advantages == two[1].old.advantages[:2].tolist()
