from dataclasses import replace

import numpy as np
import torch

from masters_ray import store
from masters_ray.kernels.attention import Layout, Span
from masters_ray.kernels.packing import PackedBatch, PromptTensors, pack
from tests.builders import group, scored, table_of
from tests.tensors import packed, prompt


def spans(batch: PackedBatch) -> tuple[Span, ...]:
    assert isinstance(batch.layout, Layout)
    return batch.layout.spans


def test_the_prompt_stands_once_and_an_answers_last_token_is_only_predicted() -> None:
    row = group([scored([5, 6, 1]), scored([7, 1])])
    batch = pack([row], [prompt(2)], pad_id=0)
    # prompt 100 101 | answer 1 reads 5 6 | answer 2 reads 7
    assert batch.input_ids.tolist() == [100, 101, 5, 6, 7]
    assert spans(batch)[0].answers == (2, 1)
    assert batch.positions[0].tolist() == [0, 1, 2, 3, 2]
    assert batch.targets.tolist() == [5, 6, 1, 7, 1]
    assert batch.predict_at.tolist() == [1, 2, 3, 1, 4]
    assert batch.answer_of.tolist() == [0, 0, 0, 1, 1]
    [stored] = store.sequence_tokens(table_of([row]))
    assert len(packed([row]).input_ids) == stored == 23, "known before it is packed"


def test_groups_follow_each_other_and_padding_comes_last() -> None:
    groups = [group([scored([5, 1]), scored([1])]), group([scored([5, 6, 7, 1]), scored([8, 1])], position=1)]
    prompts = [prompt(1, axes=1), prompt(2, axes=1)]
    batch, padded = (pack(groups, prompts, pad_id=9, multiple_of=multiple) for multiple in (4, 5))
    assert batch.input_ids.tolist() == [100, 5, 100, 101, 5, 6, 7, 8]
    assert padded.input_ids.tolist() == [*batch.input_ids.tolist(), 9, 9]
    assert [(spans(one)[-1].end, one.layout.length) for one in (batch, padded)] == [(8, 8), (8, 10)]
    assert batch.positions.tolist() == [[0, 1, 0, 1, 2, 3, 4, 2]]
    assert batch.predict_at.tolist() == [0, 1, 0, 3, 4, 5, 6, 3, 7]
    assert batch.group_of.tolist() == [0, 0, 1, 1]
    assert batch.accuracy.tolist() == [1.0, 1.0, 1.0, 1.0]
    assert batch.top_ids.shape == (9, 2)


def test_positions_of_answers_go_on_after_the_largest_of_the_prompt() -> None:
    spatial = PromptTensors(
        input_ids=torch.arange(3), positions=torch.tensor([[0, 0, 4], [0, 5, 4], [0, 1, 4]]), vision={}
    )
    batch = pack([group([scored([5, 6, 1]), scored([1])])], [spatial], pad_id=0)
    assert batch.positions[:, 3:].tolist() == [[6, 7], [6, 7], [6, 7]]


def test_pictures_are_joined_in_order_and_what_only_the_student_that_wrote_knows_is_0_for_others() -> None:
    fresh = replace(scored([5, 6]), behaviour_logprobs=np.array([-1.5, -2.5], np.float32))
    batch = pack([group(), group([fresh, fresh], position=1)], [prompt(2, patches=3), prompt(2, patches=5)], pad_id=0)
    assert batch.vision["pixel_values"].shape == (8, 4)
    assert batch.fresh.tolist() == [False, False, True, True]
    assert batch.behaviour_logprobs.tolist() == [0.0] * 5 + [-1.5, -2.5] * 2
