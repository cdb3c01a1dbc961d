import pickle
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from masters_ray import store
from masters_ray.errors import UnreadableRowError
from masters_ray.kernels.packing import PackedBatch, PromptTensors, pack, sequence_tokens, unreadable
from masters_ray.records import RolloutGroup, ScoredAnswer
from tests.builders import group, scored


def prompt(length: int, axes: int = 3, patches: int = 0) -> PromptTensors:
    vision = {"pixel_values": torch.ones(patches, 4)} if patches else {}
    return PromptTensors(
        input_ids=torch.arange(100, 100 + length), positions=torch.arange(length).expand(axes, length), vision=vision
    )


def packed(groups: Sequence[RolloutGroup]) -> PackedBatch:
    return pack(groups, [prompt(row.prompt_tokens) for row in groups], pad_id=0)


def packed_but(*positions: int) -> Callable[[Sequence[RolloutGroup]], PackedBatch]:
    """Packs all rows but these."""

    def others(groups: Sequence[RolloutGroup]) -> PackedBatch:
        for row in groups:
            if row.position in positions:
                raise unreadable(row, "its picture is gone")
        return packed(groups)

    return others


def test_the_prompt_stands_once_and_an_answers_last_token_is_only_predicted() -> None:
    batch = pack([group([scored([5, 6, 1]), scored([7, 1])])], [prompt(2)], pad_id=0)
    # prompt 100 101 | answer 1 reads 5 6 | answer 2 reads 7
    assert batch.input_ids.tolist() == [100, 101, 5, 6, 7]
    assert batch.layout.spans[0].answers == (2, 1)
    assert batch.positions[0].tolist() == [0, 1, 2, 3, 2]
    assert batch.targets.tolist() == [5, 6, 1, 7, 1]
    assert batch.predict_at.tolist() == [1, 2, 3, 1, 4]
    assert batch.answer_of.tolist() == [0, 0, 0, 1, 1]


def test_groups_follow_each_other_and_padding_comes_last() -> None:
    groups = [group([scored([5, 1]), scored([1])]), group([scored([5, 6, 7, 1]), scored([8, 1])], position=1)]
    prompts = [prompt(1, axes=1), prompt(2, axes=1)]
    batch, padded = (pack(groups, prompts, pad_id=9, multiple_of=multiple) for multiple in (4, 5))
    assert batch.input_ids.tolist() == [100, 5, 100, 101, 5, 6, 7, 8]
    assert padded.input_ids.tolist() == [*batch.input_ids.tolist(), 9, 9]
    assert (batch.layout.padding, padded.layout.padding) == (0, 2)
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


def test_the_tokens_of_a_group_are_known_before_it_is_packed() -> None:
    row = group([scored([5, 6, 1]), scored([7, 1])])
    assert sequence_tokens(row) == len(packed([row]).input_ids) == 23 == store.sequence_tokens(store.table_of([row]))[0]


@pytest.mark.parametrize(
    ("reason", "answers"),
    [
        ("holds 3 teacher log-probabilities a token, others hold 2", [scored([5, 1], k=3), scored([5, 1], k=3)]),
        ("unjudged", [scored([5, 1], accuracy=None), scored([5, 1])]),  # type: ignore[arg-type]
        ("no tokens", [scored([5, 1]), scored([])]),
    ],
)
def test_a_row_that_cannot_be_packed_is_named_and_the_reason_too(reason: str, answers: list[ScoredAnswer]) -> None:
    with pytest.raises(UnreadableRowError, match=rf"^p7 \(stage 0, position 7\): .*{reason}") as error:
        pack([group(position=3), group(answers, position=7)], [prompt(1), prompt(1)], pad_id=0)
    again = pickle.loads(pickle.dumps(error.value))
    assert (again.row, again.stage, again.position, str(again)) == ("p7", 0, 7, str(error.value))
